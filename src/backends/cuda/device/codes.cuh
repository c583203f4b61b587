// Values as 8-bit codes, as the CPU rounds them.
#pragma once

#include <cstdint>

#include "backends/cuda/device/machine.cuh"
#include "core/half.h"

namespace kf::cuda {

// Of a value divided by its scale. An i8 code is nearest to v + zero, within its ends; a NaN is the zero.
__device__ inline std::uint8_t code_of(DType dtype, float v, float zero = 0, float lowest = -128,
                                       float highest = 127) {
  if (dtype == DType::fp8_e4m3) return f32_to_fp8_e4m3(v);
  if (dtype == DType::fp8_e5m2) return f32_to_fp8_e5m2(v);
  const float rounded = isnan(v) ? 0.0f : rintf(v);
  return static_cast<std::uint8_t>(static_cast<int>(fminf(fmaxf(rounded + zero, lowest), highest)));
}

// The largest value that a code has: what a scale divides by.
__device__ inline float largest_code(DType dtype) {
  return dtype == DType::i8 ? 127.0f : dtype == DType::fp8_e4m3 ? 448.0f : 57344.0f;
}

}  // namespace kf::cuda
