// What differs between the machines that these sources are compiled for: NVIDIA's GPUs here; of others (backends/hip/machine/,
// tests/lockstep/) the folder's cuda_runtime.h stands before NVIDIA's, defines KF_WARP, and has the same functions.
//
// Of every function that moves values between lanes all lanes of a warp take part.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/device/limits.h"

namespace kf::cuda {

#ifndef KF_WARP

inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ inline T shuffle_xor(T v, int distance) {
  return __shfl_xor_sync(kAllLanes, v, distance);
}
template <class T>
__device__ inline T shuffle_up(T v, int distance) {
  return __shfl_up_sync(kAllLanes, v, distance);
}
template <class T>
__device__ inline T shuffle(T v, int lane) {
  return __shfl_sync(kAllLanes, v, lane);
}
// Bit i: what lane i gives.
__device__ inline std::uint32_t ballot(bool v) { return __ballot_sync(kAllLanes, v); }
__device__ inline int lowest_lane(std::uint32_t lanes) { return __ffs(static_cast<int>(lanes)) - 1; }
__device__ inline void sync_warp() { __syncwarp(); }

// Of f32, to 2^-21 or so, denormals as zeros.
__device__ inline float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A kernel's first parameter where it lies.
template <class Args>
__device__ inline const Args& first_argument(const Args& parameter) {
  return parameter;
}

// The shared memory that a launch asks for, aligned to 16 bytes; as an array of a kernel's own, whose addresses have 32 bits.
#define KF_DYNAMIC_SHARED(T, name) extern __shared__ T name[]
template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

#endif

}  // namespace kf::cuda
