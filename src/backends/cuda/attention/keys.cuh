// Elements of keys and values of any dtype, one at a time.
#pragma once

#include <cuda_fp8.h>

#include "backends/cuda/attention/sequences.cuh"

namespace kf::cuda::attention {

__device__ inline float scalar_at(DType dtype, const void* data, std::int64_t i) {
  switch (dtype) {
    case DType::f16:
      return widen(static_cast<const F16*>(data)[i]);
    case DType::bf16:
      return widen(static_cast<const Bf16*>(data)[i]);
    case DType::i8:
      return static_cast<const std::int8_t*>(data)[i];
    case DType::int4: {  // two a byte, the low half first
      const int byte = static_cast<const std::uint8_t*>(data)[i / 2];
      return static_cast<float>(((i % 2 ? byte >> 4 : byte & 15) ^ 8) - 8);
    }
    case DType::fp8_e4m3:
    case DType::fp8_e5m2: {
      const __half_raw h = __nv_cvt_fp8_to_halfraw(static_cast<const std::uint8_t*>(data)[i],
                                                   dtype == DType::fp8_e4m3 ? __NV_E4M3 : __NV_E5M2);
      return __half2float(__half(h));
    }
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Element d of a key or value, dequantized.
__device__ inline float key_element(const Keys& k, const KeyPlace& at, int kv_head, int d) {
  float v = scalar_at(k.dtype, k.data, key_offset(k, at, kv_head) + d);
  if (k.scales.data) {
    const int group = d / k.group_size;
    if (k.zeros.data)
      v -= scalar_at(k.zeros.dtype, k.zeros.data,
                     key_offset(k.zeros, at, kv_head) + group * k.zeros.group_stride);
    v *= scalar_at(k.scales.dtype, k.scales.data,
                   key_offset(k.scales, at, kv_head) + group * k.scales.group_stride);
  }
  return v;
}

}  // namespace kf::cuda::attention
