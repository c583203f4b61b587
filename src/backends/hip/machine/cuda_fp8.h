// CUDA's conversions of 8-bit floating-point numbers, by their bits: every one of them is an f16.
#pragma once

#include <cuda_fp16.h>

enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
using __nv_fp8_storage_t = std::uint8_t;
using __nv_fp8x2_storage_t = std::uint16_t;

// Of e4m3 an f16 has the bits, by 2^-8: exactly, of the smallest as well.
__device__ inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t v, __nv_fp8_interpretation_t kind) {
  __half_raw h;
  if (kind == __NV_E5M2) {
    h.x = static_cast<std::uint16_t>(v << 8);
    return h;
  }
  const auto bits = static_cast<std::uint16_t>((v & 0x80) << 8 | (v & 0x7f) << 7);
  h.x = __half_as_ushort(__float2half_rn(__half2float(__ushort_as_half(bits)) * 256.0f));
  if ((v & 0x7f) == 0x7f) h.x = static_cast<std::uint16_t>((v & 0x80) << 8 | 0x7fff);  // NaN
  return h;
}
__device__ inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t v,
                                                         __nv_fp8_interpretation_t kind) {
  __half2_raw h;
  h.x = __nv_cvt_fp8_to_halfraw(static_cast<std::uint8_t>(v), kind).x;
  h.y = __nv_cvt_fp8_to_halfraw(static_cast<std::uint8_t>(v >> 8), kind).x;
  return h;
}
