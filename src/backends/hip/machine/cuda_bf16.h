// CUDA's conversions to bf16, in integers: hip_bf16.h came with ROCm 5.6, and gfx906 has no instruction for it.
#pragma once

#include <cuda_runtime.h>

#include "core/half.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 low, high;
};

__host__ __device__ inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {kf::f32_to_bf16(v)}; }
__host__ __device__ inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
__host__ __device__ inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
__host__ __device__ inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.low; }
__host__ __device__ inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.high; }
