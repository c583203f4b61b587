// A machine that runs CUDA's portable sources on the host, in warps of 64 lanes as AMD's and Hygon's GPUs have them, or of as many
// as KF_WARP says: what backends/cuda/device/machine.cuh asks of one, and CUDA's functions that these sources call. The threads of a
// block take turns (lockstep.h); nothing here is fast.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "lockstep.h"

#ifndef KF_WARP
#define KF_WARP 64
#endif

#define __device__
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __noinline__
#define __shared__ static thread_local

using dim3 = kf::lockstep::Extent;
using kf::lockstep::blockDim, kf::lockstep::blockIdx, kf::lockstep::gridDim, kf::lockstep::threadIdx;
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

// ---- The runtime, of one device

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;
inline constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 60;  // of a Z100
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::malloc(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "refused by the lockstep machine"; }
inline const char* cudaGetErrorName(cudaError_t e) {
  return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInvalidValue";
}

// ---- Functions of kernels

inline void __syncthreads() { kf::lockstep::wait_for_block(); }
inline void __threadfence_system() {}
inline float __uint_as_float(std::uint32_t v) { return std::bit_cast<float>(v); }
inline std::uint32_t __float_as_uint(float v) { return std::bit_cast<std::uint32_t>(v); }
inline unsigned long long __float2ull_rn(float v) { return static_cast<unsigned long long>(rintf(v)); }
inline int __popc(std::uint32_t v) { return std::popcount(v); }
// Bytes of y:x by the lowest three bits of each of the four nibbles of s.
inline std::uint32_t __byte_perm(std::uint32_t x, std::uint32_t y, std::uint32_t s) {
  const std::uint64_t all = std::uint64_t{y} << 32 | x;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<std::uint32_t>(all >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}

// Kernels run at the same time as others' do, a block a thread of the host.
template <class T>
T atomicAdd(T* to, std::type_identity_t<T> v) {
  return __atomic_fetch_add(to, v, __ATOMIC_SEQ_CST);
}
inline int atomicCAS(int* to, int expected, int v) {
  __atomic_compare_exchange_n(to, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

namespace kf::cuda {

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

template <class T>
T shuffle(T v, int lane) {
  return lockstep::exchange<KF_WARP>(v, lane);
}
template <class T>
T shuffle_xor(T v, int distance) {
  return shuffle(v, lockstep::lane<KF_WARP>() ^ distance);
}
template <class T>
T shuffle_up(T v, int distance) {
  const int own = lockstep::lane<KF_WARP>();
  return shuffle(v, own < distance ? own : own - distance);
}
inline std::uint64_t ballot(bool v) { return lockstep::ballot<KF_WARP>(v); }
inline int lowest_lane(std::uint64_t lanes) { return std::countr_zero(lanes); }
inline void sync_warp() { lockstep::wait_for_warp(); }

inline float approximate_exp2(float x) { return exp2f(x); }
inline float approximate_reciprocal(float x) { return 1.0f / x; }

template <class Args>
const Args& first_argument(const Args& parameter) {
  return parameter;
}
#define KF_DYNAMIC_SHARED(T, name) T* const name = dynamic_shared<T>()
template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(lockstep::dynamic_shared());
}

template <class... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
                          std::type_identity_t<P>... args) {
  const bool ran = lockstep::run({grid, block, KF_WARP, shared_bytes, [&] { kernel(args...); }});
  return ran ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace kf::cuda
