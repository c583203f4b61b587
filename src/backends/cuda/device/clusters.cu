#include <cstdlib>

#include "backends/cuda/runtime.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

__global__ void probe() {}

// A device may run code that was compiled for older ones.
bool compiled_with_clusters(int device_index) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || device_index >= count) {
    cudaGetLastError();
    return true;  // asked of a device that is not here, where nothing will run
  }
  const CurrentDevice current(device_index);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, probe), "cudaFuncGetAttributes");
  return attributes.ptxVersion >= 90;
}

}  // namespace

bool has_clusters(const DeviceCaps& caps) {
  return caps.isa.starts_with("sm_") && std::atoi(caps.isa.c_str() + 3) >= 90 &&
         compiled_with_clusters(caps.device.index);
}

}  // namespace kf::cuda
