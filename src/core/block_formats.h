// GGUF's block formats, scalar: some elements of a row with a scale (and a minimum) in f16. What kernels do in
// registers is measured against these.
#pragma once

#include <cstdint>
#include <cstring>

#include "kf/dtype.h"

namespace kf {

// The blocks as they lie in the file.
struct BlockQ4_0 {
  static constexpr int kElems = 32;
  std::uint16_t d;  // f16
  std::uint8_t
      nibbles[16];  // element i in the low half of byte i, element i + 16 in the high half: (q - 8) * d
};
struct BlockQ4_1 {
  static constexpr int kElems = 32;
  std::uint16_t d, m;        // f16
  std::uint8_t nibbles[16];  // q * d + m
};
struct BlockQ5_0 {
  static constexpr int kElems = 32;
  std::uint16_t d;           // f16
  std::uint8_t high[4];      // the fifth bit of element i is bit i
  std::uint8_t nibbles[16];  // (q - 16) * d
};
struct BlockQ8_0 {
  static constexpr int kElems = 32;
  std::uint16_t d;  // f16
  std::int8_t q[32];
};
// Eight parts of 32 elements, each with a scale s and a minimum t of six bits: q * (d * s) - m * t.
struct BlockQ4_K {
  static constexpr int kElems = 256;
  std::uint16_t d, m;  // f16
  std::uint8_t scales[12];
  std::uint8_t
      nibbles[128];  // parts 2 i and 2 i + 1 are the low and the high halves of bytes 32 i to 32 i + 31
};
// Sixteen parts of 16 elements, each with a scale s: (q - 32) * (d * s).
struct BlockQ6_K {
  static constexpr int kElems = 256;
  std::uint8_t low[128];  // of 128 elements: 32 i + j is the low (i < 2) or high half of byte 32 (i % 2) + j
  std::uint8_t high[64];  // of 128 elements: bits 2 i and 2 i + 1 of byte j
  std::int8_t scales[16];
  std::uint16_t d;  // f16
};
inline constexpr int kMaxBlockElems = 256;
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ6_K) == 210);

// Scale and minimum of the eight parts of a q4_k block. Of 12 bytes, the first four hold the scales and the next four
// the minima of parts 0 to 3 in their lower six bits. The last four hold the lower four bits of parts 4 to 7, scale
// before minimum, whose upper two bits lie above those six. Four bytes are taken at a time.
struct ScalesQ4_K {
  std::uint8_t scale[8], min[8];
};
inline ScalesQ4_K scales_of(const std::uint8_t* bytes) {
  constexpr std::uint32_t kSix = 0x3f3f3f3f, kFour = 0x0f0f0f0f, kTwo = 0x30303030;
  std::uint32_t word[3];
  std::memcpy(word, bytes, sizeof word);
  const std::uint32_t scale[] = {word[0] & kSix, (word[2] & kFour) | (word[0] >> 2 & kTwo)};
  const std::uint32_t min[] = {word[1] & kSix, (word[2] >> 4 & kFour) | (word[1] >> 2 & kTwo)};
  ScalesQ4_K s;
  std::memcpy(s.scale, scale, sizeof scale);
  std::memcpy(s.min, min, sizeof min);
  return s;
}

// `n` elements, whole blocks, from f32 to blocks and back. Formats of 32 elements round as ggml's reference quantizer;
// of the K formats ggml searches for scales, which here follow from the extremes of each part.
void quantize_blocks(DType format, const float* values, void* blocks, std::int64_t n);
void dequantize_blocks(DType format, const void* blocks, float* values, std::int64_t n);

}  // namespace kf
