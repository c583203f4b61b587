// The ROCm backend's rows over the lockstep machine.
#pragma once

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "backends/cuda/runtime.h"
#include "backends/hip/kernels.h"
#include "kf/kf.h"

namespace kf {

// As a device of an architecture and so much shared memory a block says of itself.
inline Backend lockstep_backend(const std::string& architecture,
                                std::size_t shared_bytes = lockstep::kMaxShared) {
  Backend b;
  b.name = "rocm";
  b.device_type = DeviceType::rocm;
  b.available = [] { return Support::yes(); };
  b.capabilities = [=](int index) {
    DeviceCaps c;
    c.device = {DeviceType::rocm, index};
    c.name = "lockstep";
    c.isa = architecture;
    c.l1_bytes = shared_bytes;
    return c;
  };
  b.kernels = hip::kernels;
  b.memory = {[](int, std::size_t bytes, void*) { return std::aligned_alloc(64, (bytes + 64) / 64 * 64); },
              [](int, void* memory, void*) { std::free(memory); },
              [](int, void* to, const void* from, std::size_t bytes, CopyDirection, void*) {
                std::memcpy(to, from, bytes);
              },
              [](int index, void*) { cuda::throw_table_fault(index); }};
  return b;
}

}  // namespace kf
