// Backends: where ops run. A backend is a device type, what the device offers, and an ordered table of kernels.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kf/kernel.h"

namespace kf {

struct Backend {
  std::string name;  // "cpu", "cuda", ...
  DeviceType device_type{};
  // Why the backend cannot be used on this machine; yes when it can.
  Support (*available)();
  // What device `index` offers.
  DeviceCaps (*capabilities)(int index);
  // Every kernel, best first, the reference last. Called once a dispatcher.
  std::vector<Kernel> (*kernels)();
};

// All that is compiled in: src/backends/backends.cpp.
std::span<const Backend* const> all_backends();
// Throws unavailable, naming what there is.
const Backend& backend_by_name(const std::string& name);

}  // namespace kf
