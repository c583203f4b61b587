// The CUDA runtime as the backend's host code uses it: errors as kf's, the current device, and what kernels report.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace kf::cuda {

inline constexpr int kMaxDevices = 64;

// Throws what a call of the runtime returned, as resource_exhausted or unavailable: "cudaMalloc: out of memory".
void check(cudaError_t status, const char* what);

// Makes a device current, and the one before again. With a stream: refused where that is another device's, on which the work
// would be done.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index);
  CurrentDevice(int index, void* stream);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0, index_ = 0;
};

int multiprocessors(int device_index);

// What a kernel found in a table that only the device can read. It leaves out the entry and notes the first such finding;
// synchronize() throws it.
struct TableFault {
  enum Table : int {
    none,
    positions,
    slot_mapping,
    ids,
    cu_seqlens_q,
    cu_seqlens_k,
    context_lens,
    block_tables
  };
  int* claim = nullptr;  // on the device: 1 once a thread has taken it upon itself to write the rest
  int table = none;
  std::int64_t entry = 0, value = 0, limit = 0;  // table[entry] = value, expected below the limit
};
// The device's own, in host memory that it can write to.
TableFault* table_fault(int device_index);
// Throws invalid_argument where the device has noted a fault, and forgets it.
void throw_table_fault(int device_index);

}  // namespace kf::cuda
