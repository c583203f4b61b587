// The decoder of sparse weights, whatever their values: correct, not fast. It is given the weight, since where a chunk's values
// lie goes by the masks before it.
#pragma once

#include "backends/cuda/device/decoders.cuh"
#include "backends/cuda/linear/dequant_gemv_kernel.h"

namespace kf::cuda::dequant {

__device__ inline float scale_at(const Weights& w, std::int64_t row, int group) {
  float v[1];
  load_any(w.scales_dtype, w.scales, row / w.scale_rows * w.scales_stride + group, v);
  return v[0];
}
__device__ inline float zero_at(const Weights& w, std::int64_t row, int group) {
  return w.zeros ? static_cast<float>(w.zeros[row / w.scale_rows * w.zeros_stride + group]) : 0.0f;
}

// The i-th of all values: by a call, or, where that costs more than the code, in place.
#ifdef KF_WARP
#define KF_CALLED inline
#else
#define KF_CALLED inline __noinline__
#endif
__device__ KF_CALLED float value_at(DType dtype, const unsigned char* data, std::int64_t i) {
  switch (dtype) {
    case DType::int4:
      return static_cast<float>(((data[i / 2] >> (i % 2 * 4) & 15) ^ 8) - 8);
    case DType::i8:
      return static_cast<float>(static_cast<std::int8_t>(data[i]));
    case DType::fp8_e4m3:
      return widen(F16{__nv_cvt_fp8_to_halfraw(data[i], __NV_E4M3).x});
    case DType::fp8_e5m2:
      return widen(F16{__nv_cvt_fp8_to_halfraw(data[i], __NV_E5M2).x});
    default: {
      float v[1];
      load_any(dtype, data, i, v);
      return v[0];
    }
  }
}

#undef KF_CALLED

struct SparseDecoder {
  static constexpr int kRows = 2;
  static constexpr bool kScaled = false, kScaledAfter = false;
  float value[kChunk];

  // 32 bits of a row's mask.
  static __device__ std::uint32_t bits(const Weights& w, const std::uint8_t* row, int chunk) {
    std::uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (4 * chunk + k < w.mask_bytes) bits |= std::uint32_t{row[4 * chunk + k]} << (8 * k);
    return bits;
  }
  __device__ void load(const Weights& w, std::int64_t row, int chunk, int valid) {
    const std::uint8_t* const mask = w.mask + row * w.mask_stride;
    std::int64_t at;
    if (w.m > 0) {
      at = row * w.row_values + std::int64_t{chunk} * kChunk / w.m * w.n;
    } else {
      at = w.offsets[row * w.offsets_stride];
      for (int c = 0; c < chunk; ++c) at += __popc(bits(w, mask, c));
    }
    float scale = 1, zero = 0;
    if (w.scales) {
      scale = scale_at(w, row, chunk * kChunk / w.group);
      zero = zero_at(w, row, chunk * kChunk / w.group);
    }
    const std::uint32_t kept = bits(w, mask, chunk);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      value[i] = 0;
      if (i >= valid || !(kept >> i & 1)) continue;
      const float code = at >= 0 && at < w.num_values ? value_at(w.dtype, w.data, at) : 0.0f;
      value[i] = w.scales ? (code - zero) * scale : code;
      ++at;
    }
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) w[k] = value[4 * i + k];
  }
};

}  // namespace kf::cuda::dequant
