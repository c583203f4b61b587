#include "backends/cuda/runtime.h"

#include <array>
#include <mutex>

#include <fmt/format.h>

#include "kf/error.h"

namespace kf::cuda {
namespace {

#ifdef KF_WARP
constexpr const char* kDevice = "rocm";
#else
constexpr const char* kDevice = "cuda";
#endif

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // so that the next call does not report it again
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::resource_exhausted : ErrorCode::unavailable;
  throw Error(code, fmt::format("{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

CurrentDevice::CurrentDevice(int index) : index_(index) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != index_) check(cudaSetDevice(index_), "cudaSetDevice");
}
#ifdef KF_WARP
CurrentDevice::CurrentDevice(int index, void*) : CurrentDevice(index) {}  // not every HIP tells
#else
CurrentDevice::CurrentDevice(int index, void* stream) : CurrentDevice(index) {
  static const int devices = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
  }();
  int of_stream = index;
  if (devices <= 1 || stream == nullptr ||
      cudaStreamGetDevice(static_cast<cudaStream_t>(stream), &of_stream) != cudaSuccess || of_stream == index)
    return;
  throw Error(ErrorCode::invalid_argument,
              fmt::format("stream: expected one of {0}:{1}, where the operands are, got one of {0}:{2}",
                          kDevice, index, of_stream));
}
#endif
CurrentDevice::~CurrentDevice() {
  if (before_ != index_) (void)cudaSetDevice(before_);
}

int multiprocessors(int device_index) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_index),
        "cudaDeviceGetAttribute");
  return count;
}

TableFault* table_fault(int device_index) {
  static std::array<TableFault*, kMaxDevices> faults{};
  static std::mutex mutex;
  if (device_index < 0 || device_index >= kMaxDevices)
    throw Error(ErrorCode::unavailable, fmt::format("{}: expected a device index below {}, got {}", kDevice,
                                                    kMaxDevices, device_index));
  const std::lock_guard lock(mutex);
  TableFault*& fault = faults[static_cast<std::size_t>(device_index)];
  if (fault == nullptr) {
    const CurrentDevice current(device_index);
    void* memory = nullptr;  // lives as long as the process: kernels in flight may write to it
    check(cudaHostAlloc(&memory, sizeof(TableFault), cudaHostAllocPortable | cudaHostAllocMapped),
          "cudaHostAlloc");
    void* claim = nullptr;
    check(cudaMalloc(&claim, sizeof(int)), "cudaMalloc");
    check(cudaMemset(claim, 0, sizeof(int)), "cudaMemset");
    fault = new (memory) TableFault;
    fault->claim = static_cast<int*>(claim);
  }
  return fault;
}

void throw_table_fault(int device_index) {
  static constexpr const char* kNames[] = {
      "", "positions", "slot_mapping", "ids", "cu_seqlens_q", "cu_seqlens_k", "context_lens", "block_tables"};
  TableFault* const fault = table_fault(device_index);
  const volatile int& table = fault->table;  // the device writes to it
  if (table == TableFault::none) return;
  const TableFault found = *fault;
  *fault = {.claim = found.claim};
  const CurrentDevice current(device_index);
  check(cudaMemset(found.claim, 0, sizeof(int)), "cudaMemset");
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}[{}] on {}:{}: expected a value below {}, got {}; the entry was left out",
                          kNames[found.table], found.entry, kDevice, device_index, found.limit, found.value));
}

}  // namespace kf::cuda
