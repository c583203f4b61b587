// What the reference kernels are written in: single elements in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/block_formats.h"
#include "core/half.h"
#include "kf/ops/common.h"

namespace kf::cpu::reference {

// The element at an element offset, of any float dtype or block format.
inline double read(const TensorView& t, std::int64_t offset) {
  switch (t.dtype) {
    case DType::f16:
      return f16_to_f32(t.as<std::uint16_t>()[offset]);
    case DType::bf16:
      return bf16_to_f32(t.as<std::uint16_t>()[offset]);
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
