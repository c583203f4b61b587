#include "core/block_formats.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/half.h"
#include "kf/error.h"

namespace kf {
namespace {

// Values without a place on the scale take the nearest end of it; NaN becomes 0.
std::uint8_t to_nibble(float scaled) {
  if (!(scaled > 0.0f)) return 0;
  return scaled < 15.0f ? static_cast<std::uint8_t>(scaled) : std::uint8_t{15};
}

std::int8_t to_byte(float scaled) {
  if (std::isnan(scaled)) return 0;
  return static_cast<std::int8_t>(std::clamp(std::round(scaled), -127.0f, 127.0f));
}

float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// The scale takes the value of largest magnitude, with its sign, to -8: the nibbles reach further down than
// up.
void encode(const float* x, BlockQ4_0& block) {
  float largest = 0;
  for (int i = 0; i < kBlockElems; ++i)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  const float d = largest / -8, inv = inverse(d);
  block.d = f32_to_f16(d);
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t lo = to_nibble(x[i] * inv + 8.5f), hi = to_nibble(x[i + 16] * inv + 8.5f);
    block.nibbles[i] = static_cast<std::uint8_t>(lo | (hi << 4));
  }
}

void encode(const float* x, BlockQ4_1& block) {
  float m = x[0], hi = x[0];
  for (int i = 1; i < kBlockElems; ++i) {
    m = std::fmin(m, x[i]);
    hi = std::fmax(hi, x[i]);
  }
  const float d = (hi - m) / 15, inv = inverse(d);
  block.d = f32_to_f16(d);
  block.m = f32_to_f16(m);
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t lo = to_nibble((x[i] - m) * inv + 0.5f), hi = to_nibble((x[i + 16] - m) * inv + 0.5f);
    block.nibbles[i] = static_cast<std::uint8_t>(lo | (hi << 4));
  }
}

void encode(const float* x, BlockQ8_0& block) {
  float largest = 0;
  for (int i = 0; i < kBlockElems; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127, inv = inverse(d);
  block.d = f32_to_f16(d);
  for (int i = 0; i < kBlockElems; ++i) block.q[i] = to_byte(x[i] * inv);
}

void decode(const BlockQ4_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 16; ++i) {
    x[i] = static_cast<float>((block.nibbles[i] & 15) - 8) * d;
    x[i + 16] = static_cast<float>((block.nibbles[i] >> 4) - 8) * d;
  }
}

void decode(const BlockQ4_1& block, float* x) {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  for (int i = 0; i < 16; ++i) {
    x[i] = static_cast<float>(block.nibbles[i] & 15) * d + m;
    x[i + 16] = static_cast<float>(block.nibbles[i] >> 4) * d + m;
  }
}

void decode(const BlockQ8_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < kBlockElems; ++i) x[i] = static_cast<float>(block.q[i]) * d;
}

// Calls f with a null pointer of the block type of `format`.
template <class F>
void with_block_type(DType format, F f) {
  switch (format) {
    case DType::q4_0:
      return f(static_cast<BlockQ4_0*>(nullptr));
    case DType::q4_1:
      return f(static_cast<BlockQ4_1*>(nullptr));
    case DType::q8_0:
      return f(static_cast<BlockQ8_0*>(nullptr));
    default:
      throw_invalid(std::string("expected a block format, got ") + dtype_name(format));
  }
}

}  // namespace

void quantize_blocks(DType format, const float* values, void* blocks, std::int64_t n) {
  with_block_type(format, [&]<class Block>(Block*) {
    for (std::int64_t b = 0; b < n / kBlockElems; ++b)
      encode(values + b * kBlockElems, static_cast<Block*>(blocks)[b]);
  });
}

void dequantize_blocks(DType format, const void* blocks, float* values, std::int64_t n) {
  with_block_type(format, [&]<class Block>(Block*) {
    for (std::int64_t b = 0; b < n / kBlockElems; ++b)
      decode(static_cast<const Block*>(blocks)[b], values + b * kBlockElems);
  });
}

}  // namespace kf
