// The one list of what is compiled in.

#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/cpu/cpu_backend.h"
#ifdef KF_CUDA
#include "backends/cuda/cuda_backend.h"
#endif
#include "kf/backend.h"
#include "kf/error.h"

namespace kf {

std::span<const Backend* const> all_backends() {
  static const Backend* const kBackends[] = {
      &cpu::backend(),
#ifdef KF_CUDA
      &cuda::backend(),
#endif
  };
  return kBackends;
}

Device parse_device(std::string_view name) {
  constexpr DeviceType kTypes[] = {DeviceType::cpu,    DeviceType::cuda, DeviceType::rocm,
                                   DeviceType::ascend, DeviceType::mlu,  DeviceType::kunlun};
  const std::size_t colon = name.find(':');
  const std::string_view digits = colon == name.npos ? "0" : name.substr(colon + 1);
  Device device;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), device.index);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size() && device.index >= 0;
  for (const DeviceType type : kTypes) {
    if (!is_number || name.substr(0, colon) != device_type_name(type)) continue;
    device.type = type;
    return device;
  }
  throw_invalid(
      fmt::format("device: expected cpu, cuda, rocm, ascend, mlu or kunlun, alone or with a number (cuda:1), "
                  "got '{}'",
                  name));
}

const Backend& backend_by_name(const std::string& name) {
  std::vector<std::string> names;
  for (const Backend* b : all_backends()) {
    if (b->name == name) return *b;
    names.push_back(b->name);
  }
  throw Error(ErrorCode::unavailable, fmt::format("backend: expected one of those compiled in ({}), got {}",
                                                  fmt::join(names, ", "), name));
}

}  // namespace kf
