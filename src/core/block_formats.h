// GGUF's block formats, scalar: 32 elements of a row with a scale (and a minimum) in f16. What kernels do in
// registers is measured against these.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf {

// The blocks as they lie in the file.
struct BlockQ4_0 {
  std::uint16_t d;  // f16
  std::uint8_t
      nibbles[16];  // element i in the low half of byte i, element i + 16 in the high half: (q - 8) * d
};
struct BlockQ4_1 {
  std::uint16_t d, m;        // f16
  std::uint8_t nibbles[16];  // q * d + m
};
struct BlockQ8_0 {
  std::uint16_t d;  // f16
  std::int8_t q[32];
};
inline constexpr int kBlockElems = 32;
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ8_0) == 34);

// `n` elements, a multiple of 32, from f32 to blocks and back; rounding as ggml's reference quantizer.
void quantize_blocks(DType format, const float* values, void* blocks, std::int64_t n);
void dequantize_blocks(DType format, const void* blocks, float* values, std::int64_t n);

}  // namespace kf
