#include "core/block_formats.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/half.h"
#include "kf/error.h"

namespace kf {
namespace {

// Values without a place on the scale take the nearest end of it; NaN becomes 0.
std::uint8_t to_bits(float scaled, float largest) {
  if (!(scaled > 0.0f)) return 0;
  return static_cast<std::uint8_t>(std::min(scaled, largest));
}
std::uint8_t to_nibble(float scaled) { return to_bits(scaled, 15.0f); }

std::int8_t to_byte(float scaled) {
  if (std::isnan(scaled)) return 0;
  return static_cast<std::int8_t>(std::clamp(std::round(scaled), -127.0f, 127.0f));
}

float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// The value of largest magnitude, with its sign.
float largest_of(const float* x, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  return largest;
}

// The scale takes the value of largest magnitude to -8: the nibbles reach further down than up.
void encode(const float* x, BlockQ4_0& block) {
  const float d = largest_of(x, block.kElems) / -8, inv = inverse(d);
  block.d = f32_to_f16(d);
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t lo = to_nibble(x[i] * inv + 8.5f), hi = to_nibble(x[i + 16] * inv + 8.5f);
    block.nibbles[i] = static_cast<std::uint8_t>(lo | (hi << 4));
  }
}

void encode(const float* x, BlockQ4_1& block) {
  float m = x[0], hi = x[0];
  for (int i = 1; i < block.kElems; ++i) {
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

void encode(const float* x, BlockQ5_0& block) {
  const float d = largest_of(x, block.kElems) / -16, inv = inverse(d);
  block.d = f32_to_f16(d);
  std::fill(block.high, block.high + 4, std::uint8_t{0});
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t lo = to_bits(x[i] * inv + 16.5f, 31.0f), hi = to_bits(x[i + 16] * inv + 16.5f, 31.0f);
    block.nibbles[i] = static_cast<std::uint8_t>((lo & 15) | ((hi & 15) << 4));
    block.high[i / 8] = static_cast<std::uint8_t>(block.high[i / 8] | (lo >> 4) << (i % 8));
    block.high[2 + i / 8] = static_cast<std::uint8_t>(block.high[2 + i / 8] | (hi >> 4) << (i % 8));
  }
}

void encode(const float* x, BlockQ8_0& block) {
  float largest = 0;
  for (int i = 0; i < block.kElems; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float d = largest / 127, inv = inverse(d);
  block.d = f32_to_f16(d);
  for (int i = 0; i < block.kElems; ++i) block.q[i] = to_byte(x[i] * inv);
}

// Each part's scale and minimum are rounded to 63rds of the block's largest; values then to what these two give. A
// minimum counts as subtracted, so that it is at least 0.
void encode(const float* x, BlockQ4_K& block) {
  float scale[8], min[8], most_scale = 0, most_min = 0;
  for (int part = 0; part < 8; ++part) {
    float low = 0, high = 0;
    for (int i = 0; i < 32; ++i) {
      low = std::fmin(low, x[part * 32 + i]);
      high = std::fmax(high, x[part * 32 + i]);
    }
    scale[part] = (high - low) / 15;
    min[part] = -low;
    most_scale = std::max(most_scale, scale[part]);
    most_min = std::max(most_min, min[part]);
  }
  block.d = f32_to_f16(most_scale / 63);
  block.m = f32_to_f16(most_min / 63);
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  const float inv_d = inverse(d), inv_m = inverse(m);
  std::fill(block.scales, block.scales + 12, std::uint8_t{0});
  const auto put = [&](int at, int bits) {
    block.scales[at] = static_cast<std::uint8_t>(block.scales[at] | bits);
  };
  for (int part = 0; part < 8; ++part) {
    const std::uint8_t s = to_bits(scale[part] * inv_d + 0.5f, 63.0f),
                       t = to_bits(min[part] * inv_m + 0.5f, 63.0f);
    if (part < 4) {
      put(part, s);
      put(part + 4, t);
    } else {
      put(part + 4, (s & 15) | (t & 15) << 4);
      put(part - 4, s >> 4 << 6);
      put(part, t >> 4 << 6);
    }
    const float step = inverse(d * static_cast<float>(s)), offset = m * static_cast<float>(t);
    for (int i = 0; i < 32; ++i) {
      const std::uint8_t q = to_nibble((x[part * 32 + i] + offset) * step + 0.5f);
      std::uint8_t& byte = block.nibbles[part / 2 * 32 + i];
      byte = static_cast<std::uint8_t>(part % 2 == 0 ? q : byte | q << 4);
    }
  }
}

// As in q4_0, the value of largest magnitude goes to the end that reaches further; so does the largest scale.
void encode(const float* x, BlockQ6_K& block) {
  float scale[16];
  for (int part = 0; part < 16; ++part) scale[part] = largest_of(x + part * 16, 16) / -32;
  block.d = f32_to_f16(largest_of(scale, 16) / -128);
  const float d = f16_to_f32(block.d), inv = inverse(d);
  std::fill(block.low, block.low + 128, std::uint8_t{0});
  std::fill(block.high, block.high + 64, std::uint8_t{0});
  for (int part = 0; part < 16; ++part) {
    const float s = std::clamp(std::round(scale[part] * inv), -128.0f, 127.0f);
    block.scales[part] = std::isnan(s) ? std::int8_t{0} : static_cast<std::int8_t>(s);
    const float step = inverse(d * static_cast<float>(block.scales[part]));
    for (int i = 0; i < 16; ++i) {
      const std::uint8_t q = to_bits(x[part * 16 + i] * step + 32.5f, 63.0f);
      const int half = part / 8, quarter = part % 8 / 2, j = part % 2 * 16 + i;
      std::uint8_t& low = block.low[half * 64 + quarter % 2 * 32 + j];
      std::uint8_t& high = block.high[half * 32 + j];
      low = static_cast<std::uint8_t>(low | (q & 15) << (quarter / 2 * 4));
      high = static_cast<std::uint8_t>(high | (q >> 4) << (quarter * 2));
    }
  }
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

void decode(const BlockQ5_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < 32; ++i) {
    const int low = i < 16 ? block.nibbles[i] & 15 : block.nibbles[i - 16] >> 4;
    const int high = block.high[i / 8] >> (i % 8) & 1;
    x[i] = static_cast<float>(low + 16 * high - 16) * d;
  }
}

void decode(const BlockQ8_0& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < block.kElems; ++i) x[i] = static_cast<float>(block.q[i]) * d;
}

void decode(const BlockQ4_K& block, float* x) {
  const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
  const ScalesQ4_K s = scales_of(block.scales);
  for (int part = 0; part < 8; ++part) {
    const float scale = d * s.scale[part], min = m * s.min[part];
    for (int i = 0; i < 32; ++i) {
      const int byte = block.nibbles[part / 2 * 32 + i];
      x[part * 32 + i] = static_cast<float>(part % 2 == 0 ? byte & 15 : byte >> 4) * scale - min;
    }
  }
}

void decode(const BlockQ6_K& block, float* x) {
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < block.kElems; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, j = i % 32;
    const int low = block.low[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
    const int high = block.high[half * 32 + j] >> (quarter * 2) & 3;
    x[i] = static_cast<float>(low + 16 * high - 32) * (d * block.scales[i / 16]);
  }
}

// Calls f with a null pointer of the block type of `format`.
template <class F>
void with_block_type(DType format, F f) {
  switch (format) {
    case DType::q4_0:
      return f(static_cast<BlockQ4_0*>(nullptr));
    case DType::q4_1:
      return f(static_cast<BlockQ4_1*>(nullptr));
    case DType::q5_0:
      return f(static_cast<BlockQ5_0*>(nullptr));
    case DType::q8_0:
      return f(static_cast<BlockQ8_0*>(nullptr));
    case DType::q4_k:
      return f(static_cast<BlockQ4_K*>(nullptr));
    case DType::q6_k:
      return f(static_cast<BlockQ6_K*>(nullptr));
    default:
      throw_invalid(std::string("expected a block format, got ") + dtype_name(format));
  }
}

}  // namespace

void quantize_blocks(DType format, const float* values, void* blocks, std::int64_t n) {
  with_block_type(format, [&]<class Block>(Block*) {
    for (std::int64_t b = 0; b < n / Block::kElems; ++b)
      encode(values + b * Block::kElems, static_cast<Block*>(blocks)[b]);
  });
}

void dequantize_blocks(DType format, const void* blocks, float* values, std::int64_t n) {
  with_block_type(format, [&]<class Block>(Block*) {
    for (std::int64_t b = 0; b < n / Block::kElems; ++b)
      decode(static_cast<const Block*>(blocks)[b], values + b * Block::kElems);
  });
}

}  // namespace kf
