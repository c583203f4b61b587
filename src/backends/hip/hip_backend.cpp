#include "backends/hip/hip_backend.h"

#include <cuda_runtime.h>

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "backends/cuda/runtime.h"
#include "backends/hip/kernels.h"
#include "backends/hip/library.h"
#include "kf/error.h"

namespace kf::hip {
namespace {

using cuda::check;
using cuda::CurrentDevice;

// Those that kernels are compiled for: "gfx906, gfx90a".
constexpr std::string_view kArchitectures = KF_HIP_ARCHITECTURES;

// "gfx906" of "gfx906:sramecc+:xnack-".
std::string architecture(const hipDeviceProp_t& properties) {
  const std::string_view all = properties.gcnArchName;
  return std::string(all.substr(0, all.find(':')));
}

bool is_compiled_for(const std::string& name) {
  return fmt::format(", {},", kArchitectures).find(", " + name + ",") != std::string::npos;
}

Support available() {
  if (!library().problem().empty()) return Support::no("HIP cannot be used: " + library().problem());
  int count = 0;
  if (const hipError_t status = hipGetDeviceCount(&count); status != hipSuccess || count == 0) {
    (void)hipGetLastError();
    return Support::no(fmt::format("no usable DCU or AMD GPU: {}", hipGetErrorString(status)));
  }
  std::string found;
  for (int i = 0; i < count; ++i) {
    hipDeviceProp_t properties;
    if (hipGetDeviceProperties(&properties, i) != hipSuccess) continue;
    const std::string name = architecture(properties);
    if (is_compiled_for(name)) return Support::yes();
    found += (found.empty() ? "" : ", ") + name;
  }
  return Support::no(fmt::format("kernels are compiled for {}; there are {}; build with KF_HIP_ARCHITECTURES",
                                 kArchitectures, found));
}

DeviceCaps capabilities(int index) {
  if (const Support s = available(); !s) throw Error(ErrorCode::unavailable, "rocm: " + s.reason());
  int count = 0;
  check(hipGetDeviceCount(&count), "hipGetDeviceCount");
  if (index < 0 || index >= count)
    throw Error(ErrorCode::unavailable,
                fmt::format("rocm: expected a device index below {}, got {}", count, index));
  hipDeviceProp_t properties;
  check(hipGetDeviceProperties(&properties, index), "hipGetDeviceProperties");
  const std::string name = architecture(properties);
  if (!is_compiled_for(name) || properties.warpSize != KF_WARP)
    throw Error(ErrorCode::unavailable,
                fmt::format("rocm:{}: expected one of {} with waves of {} lanes, got {} with {}", index,
                            kArchitectures, KF_WARP, name, properties.warpSize));
  DeviceCaps c;
  c.device = {DeviceType::rocm, index};
  c.name = fmt::format("{}, {} compute units", properties.name, properties.multiProcessorCount);
  c.isa = name;
  c.l1_bytes = properties.sharedMemPerBlock;
  c.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  c.memory_bytes = properties.totalGlobalMem;
  return c;
}

// hipMallocAsync is not to be counted on before ROCm 6; hipFree waits for the device.
void* allocate(int device_index, std::size_t bytes, void*) {
  const CurrentDevice current(device_index);
  void* memory = nullptr;
  check(hipMalloc(&memory, bytes > 0 ? bytes : 1), "hipMalloc");
  return memory;
}
void free_memory(int, void* memory, void*) { (void)hipFree(memory); }

void* allocate_host(int device_index, std::size_t bytes) {
  const CurrentDevice current(device_index);
  void* memory = nullptr;
  check(hipHostMalloc(&memory, bytes, hipHostMallocPortable), "hipHostMalloc");
  return memory;
}
void free_host(void* memory) { (void)hipHostFree(memory); }

void copy(int device_index, void* to, const void* from, std::size_t bytes, CopyDirection direction,
          void* stream) {
  const CurrentDevice current(device_index);
  const hipMemcpyKind kind = direction == CopyDirection::to_device ? hipMemcpyHostToDevice
                             : direction == CopyDirection::to_host ? hipMemcpyDeviceToHost
                                                                   : hipMemcpyDeviceToDevice;
  check(hipMemcpyAsync(to, from, bytes, kind, static_cast<hipStream_t>(stream)), "hipMemcpyAsync");
}

void synchronize(int device_index, void* stream) {
  const CurrentDevice current(device_index);
  check(hipStreamSynchronize(static_cast<hipStream_t>(stream)), "hipStreamSynchronize");
  cuda::throw_table_fault(device_index);
}

}  // namespace

const Backend& backend() {
  static const Backend b{"rocm",    DeviceType::rocm,
                         available, capabilities,
                         kernels,   {allocate, free_memory, copy, synchronize, allocate_host, free_host}};
  return b;
}

}  // namespace kf::hip
