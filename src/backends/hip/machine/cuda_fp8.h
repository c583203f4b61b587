// CUDA's conversions of 8-bit floating-point numbers, by their bits: every one of them is an f16.
#pragma once

#include <cuda_fp16.h>

#include "core/half.h"

enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
using __nv_fp8_storage_t = std::uint8_t;
using __nv_fp8x2_storage_t = std::uint16_t;

__host__ __device__ inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t v,
                                                              __nv_fp8_interpretation_t kind) {
  __half_raw h;
  h.x = kind == __NV_E4M3 ? kf::f32_to_f16(kf::fp8_e4m3_to_f32(v)) : static_cast<std::uint16_t>(v << 8);
  return h;
}
__host__ __device__ inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t v,
                                                                  __nv_fp8_interpretation_t kind) {
  __half2_raw h;
  h.x = __nv_cvt_fp8_to_halfraw(static_cast<std::uint8_t>(v), kind).x;
  h.y = __nv_cvt_fp8_to_halfraw(static_cast<std::uint8_t>(v >> 8), kind).x;
  return h;
}
