// What the reference kernels are written in: single elements in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/block_formats.h"
#include "core/half.h"
#include "kf/ops/common.h"
#include "kf/ops/quantized_output.h"

namespace kf::cpu::reference {

// The element at an element offset, of any float dtype or block format.
inline double read(const TensorView& t, std::int64_t offset) {
  switch (t.dtype) {
    case DType::f16:
      return f16_to_f32(t.as<std::uint16_t>()[offset]);
    case DType::bf16:
      return bf16_to_f32(t.as<std::uint16_t>()[offset]);
    case DType::boolean:
      return t.as<std::uint8_t>()[offset] != 0;
    case DType::fp8_e4m3:
      return fp8_e4m3_to_f32(t.as<std::uint8_t>()[offset]);
    case DType::fp8_e5m2:
      return fp8_e5m2_to_f32(t.as<std::uint8_t>()[offset]);
    default:
      break;
  }
  const DTypeInfo& info = dtype_info(t.dtype);
  if (!info.is_block) return t.as<float>()[offset];
  float block[kMaxBlockElems];
  dequantize_blocks(t.dtype, t.at(offset), block, info.block_elems);
  return block[offset % info.block_elems];
}

// Rounds to the dtype of `t`: f32, f16 or bf16.
inline void write(const TensorView& t, std::int64_t offset, double value) {
  with_activation_type(t.dtype, [&]<class T>(std::type_identity<T>) {
    t.as<T>()[offset] = from_f32<T>(static_cast<float>(value));
  });
}

// A row of an output: y(i) for each i in turn, at `offset` and `stride` elements apart; its scale, where it has one, at
// `scale_offset`.
template <class Y>
void write_row(const TensorView& out, const OutputQuantization& q, std::int64_t offset, std::int64_t stride,
               std::int64_t scale_offset, std::int64_t n, const Y& y) {
  if (!q.present()) {
    for (std::int64_t i = 0; i < n; ++i) write(out, offset + i * stride, y(i));
    return;
  }
  std::vector<float> row(static_cast<std::size_t>(n));
  float largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float v = row[static_cast<std::size_t>(i)] = static_cast<float>(y(i));
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  }
  const float end = out.dtype == DType::i8 ? 127.0f : out.dtype == DType::fp8_e4m3 ? 448.0f : 57344.0f;
  const float scale = q.dynamic() ? largest / end : *q.static_scale.as<float>();
  if (q.dynamic()) q.scales.as<float>()[scale_offset] = scale;
  for (std::int64_t i = 0; i < n; ++i) {
    const double code = row[static_cast<std::size_t>(i)] / static_cast<double>(scale == 0 ? 1.0f : scale);
    const std::int64_t at = offset + i * stride;
    if (out.dtype == DType::i8)
      out.as<std::int8_t>()[at] =
          static_cast<std::int8_t>(std::isnan(code) ? 0.0 : std::clamp(std::nearbyint(code), -128.0, 127.0));
    else
      out.as<std::uint8_t>()[at] = out.dtype == DType::fp8_e4m3 ? f32_to_fp8_e4m3(static_cast<float>(code))
                                                                : f32_to_fp8_e5m2(static_cast<float>(code));
  }
}

inline double activate(Activation kind, double x) {
  switch (kind) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return x / 2 * (1 + std::erf(x / std::numbers::sqrt2));
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::none:
      return x;
  }
  return x;
}

}  // namespace kf::cpu::reference
