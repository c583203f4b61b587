// Asynchronous copies to shared memory (PTX ISA, "cp.async"). Where kCopiesAside is false there are none, and kernels read what they
// would have copied from where it lies.
#pragma once

#include <cstdint>

#include "backends/cuda/device/machine.cuh"

namespace kf::cuda {

#ifdef KF_WARP
// For code that is discarded.
__device__ std::uint32_t shared_address(const void* p);
__device__ void copy_async_bytes(std::uint32_t to, const void* from, int bytes);
__device__ void copy_async(std::uint32_t to, const void* from, bool valid);
__device__ void commit_copies();
template <int kGroups>
__device__ void wait_for_copies();
#else
__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes, of which the first `bytes` are read and the others zeros.
__device__ inline void copy_async_bytes(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
// 16 bytes; zeros where `valid` is false, and nothing is read.
__device__ inline void copy_async(std::uint32_t to, const void* from, bool valid) {
  copy_async_bytes(to, from, valid ? 16 : 0);
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the newest kGroups groups have arrived.
template <int kGroups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
#endif

}  // namespace kf::cuda
