// 16-bit and 8-bit floating-point numbers as they lie in memory, and their scalar conversions. Rounding is to
// nearest even; NaN stays NaN (quiet), what is too large for f16 becomes infinity, denormals are kept.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kf/dtype.h"

namespace kf {

// The bits of one element: types of their own, so that overloads and templates tell f16 from bf16.
struct F16 {
  std::uint16_t bits;
};
struct Bf16 {
  std::uint16_t bits;
};

constexpr float bf16_to_f32(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

constexpr std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    const std::uint32_t quiet = magnitude > 0x7c00u ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13) | quiet);
  }
  if (magnitude < 0x400u) {  // zero, denormal: a multiple of 2^-24, exact in f32
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

constexpr std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 rounds to a multiple of 2^-24
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {  // the carry of rounding may run into the exponent, up to infinity
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | half);
}

// E4M3 has no infinity and one NaN (OCP 8-bit Floating Point Specification, 2023).
constexpr float fp8_e4m3_to_f32(std::uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  float value = exponent ? static_cast<float>(8 + mantissa) * 0x1p-10f * static_cast<float>(1 << exponent)
                         : static_cast<float>(mantissa) * 0x1p-9f;
  if ((bits & 0x7f) == 0x7f) value = std::bit_cast<float>(0x7fc00000u);
  return bits & 0x80 ? -value : value;
}

// E5M2 is the upper byte of an f16.
constexpr float fp8_e5m2_to_f32(std::uint8_t bits) {
  return f16_to_f32(static_cast<std::uint16_t>(bits << 8));
}

// An 8-bit float with this many bits of mantissa and this bias. What is too large, infinity too, becomes `largest`, as
// the specification has it for quantizing; NaN is all ones.
template <int kMantissa, int kBias, std::uint8_t kLargest>
constexpr std::uint8_t f32_to_fp8(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  std::uint32_t byte = 0;
  if (magnitude < std::uint32_t{128 - kBias}
                      << 23) {  // denormal: adding this rounds to a multiple of the least one
    const std::uint32_t unit = std::uint32_t{151 - kBias - kMantissa} << 23;
    byte = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(unit)) - unit;
  } else {  // the carry of rounding may run into the exponent
    constexpr int kShift = 23 - kMantissa;
    byte = (magnitude - (std::uint32_t{127 - kBias} << 23) + (1u << (kShift - 1)) - 1 +
            ((magnitude >> kShift) & 1u)) >>
           kShift;
  }
  return static_cast<std::uint8_t>(sign | (byte < kLargest ? byte : kLargest));
}
constexpr std::uint8_t f32_to_fp8_e4m3(float value) { return f32_to_fp8<3, 7, 0x7e>(value); }   // to 448
constexpr std::uint8_t f32_to_fp8_e5m2(float value) { return f32_to_fp8<2, 15, 0x7b>(value); }  // to 57344

constexpr float to_f32(float value) { return value; }
constexpr float to_f32(F16 value) { return f16_to_f32(value.bits); }
constexpr float to_f32(Bf16 value) { return bf16_to_f32(value.bits); }

template <class T>
constexpr T from_f32(float value) {
  if constexpr (std::is_same_v<T, F16>) {
    return {f32_to_f16(value)};
  } else if constexpr (std::is_same_v<T, Bf16>) {
    return {f32_to_bf16(value)};
  } else {
    return value;
  }
}

// Calls f(std::type_identity<T>()) with the element type T of an activation dtype: float, F16 or Bf16.
template <class F>
decltype(auto) with_activation_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f16:
      return std::forward<F>(f)(std::type_identity<F16>());
    case DType::bf16:
      return std::forward<F>(f)(std::type_identity<Bf16>());
    default:
      return std::forward<F>(f)(std::type_identity<float>());
  }
}

}  // namespace kf
