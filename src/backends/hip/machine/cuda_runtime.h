// AMD's and Hygon's GPUs as the sources of backends/cuda see them: HIP by CUDA's names, and what machine.cuh asks of a machine.
// Of waves of 64 lanes (GCN, CDNA, DCU).
#pragma once

#define KF_WARP 64

#include <cstdint>
#include <type_traits>

#ifdef __HIP__
#include <hip/hip_runtime.h>
#else
#include <hip/hip_runtime_api.h>
#endif

#define __grid_constant__

#define cudaDevAttrMultiProcessorCount hipDeviceAttributeMultiprocessorCount
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaError_t hipError_t
#define cudaEventCreate hipEventCreate
#define cudaEventDestroy hipEventDestroy
#define cudaEventElapsedTime hipEventElapsedTime
#define cudaEventRecord hipEventRecord
#define cudaEventSynchronize hipEventSynchronize
#define cudaEvent_t hipEvent_t
#define cudaGetDevice hipGetDevice
#define cudaGetErrorName hipGetErrorName
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaHostAlloc hipHostMalloc
#define cudaHostAllocMapped hipHostMallocMapped
#define cudaHostAllocPortable hipHostMallocPortable
#define cudaMalloc hipMalloc
#define cudaMemset hipMemset
#define cudaSetDevice hipSetDevice
#define cudaStream_t hipStream_t
#define cudaSuccess hipSuccess

namespace kf::cuda {

#ifdef __HIP__
template <class T>
__device__ inline T shuffle_xor(T v, int distance) {
  return __shfl_xor(v, distance);
}
template <class T>
__device__ inline T shuffle_up(T v, int distance) {
  return __shfl_up(v, static_cast<unsigned>(distance));
}
template <class T>
__device__ inline T shuffle(T v, int lane) {
  return __shfl(v, lane);
}
__device__ inline std::uint64_t ballot(bool v) { return __ballot(v); }
__device__ inline int lowest_lane(std::uint64_t lanes) { return __builtin_ctzll(lanes); }
// A wave's lanes go in step; the compiler is kept from moving accesses to shared memory.
__device__ inline void sync_warp() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

__device__ inline float approximate_exp2(float x) { return __builtin_exp2f(x); }
__device__ inline float approximate_reciprocal(float x) { return __builtin_amdgcn_rcpf(x); }

// Where they are read from anyway. As a parameter they are copied to memory of each lane's own where an index is not constant.
template <class Args>
__device__ inline const Args& first_argument(const Args&) {
  return *(const Args*)__builtin_amdgcn_kernarg_segment_ptr();
}

#define KF_DYNAMIC_SHARED(T, name) T* const name = dynamic_shared<T>()
template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __attribute__((aligned(16))) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

template <class... P>
hipError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes,
                         hipStream_t stream, std::type_identity_t<P>... args) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  return hipLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, stream);
}
#endif

}  // namespace kf::cuda
