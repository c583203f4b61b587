// Scales beside a weight.
#pragma once

#include "backends/cuda/device/element.cuh"
#include "backends/cuda/linear/dequant_gemv_kernel.h"

namespace kf::cuda::dequant {

// Scales as they lie, so that nothing waits for them before they are used.
struct RawScale {
  std::uint32_t scale = 0;
  int zero = 0;
};
__device__ inline int scale_row(const Weights& w, int row) {
  return w.scale_rows == 1 ? row : row / w.scale_rows;
}
__device__ inline RawScale load_scale(const Weights& w, int scale_row, int group) {
  const std::int64_t at = scale_row * w.scales_stride + group;
  RawScale s;
  s.scale = w.scales_dtype == DType::f32 ? static_cast<const std::uint32_t*>(w.scales)[at]
                                         : std::uint32_t{static_cast<const std::uint16_t*>(w.scales)[at]};
  if (w.zeros) s.zero = w.zeros[scale_row * w.zeros_stride + group];
  return s;
}
__device__ inline float scale_of(DType dtype, RawScale s) {
  if (dtype == DType::f32) return __uint_as_float(s.scale);
  const auto bits = static_cast<std::uint16_t>(s.scale);
  return dtype == DType::f16 ? widen(F16{bits}) : widen(Bf16{bits});
}

}  // namespace kf::cuda::dequant
