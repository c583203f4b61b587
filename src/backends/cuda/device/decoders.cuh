// Weights that are decoded in registers, 32 neighbours of a row (a chunk) at a time: what one format differs in from another.
//
// A decoder is a struct D with
//   kStepBytes     bytes of a step of a row: a chunk a lane
//   kRows          rows that a warp can hold a chunk of each a lane, where a lane has 255 registers
//   kScaled        scales lie beside the weight, and kScaledAfter: `scale` belongs to sums, not to the values of quad()
//   D::load()      a chunk's codes, where `row` are the bytes of chunk 0 and only `valid` elements may be read (whole blocks of
//                  32 where the format has them); scale and zero are those of the chunk where kScaled. kWhole: all 32 are
//                  valid, and `row` is aligned to 16 bytes
//   D::quad<i>()   elements 4 i to 4 i + 3 in f32; beyond the valid ones some number
// Codes become floats without a conversion: as the lowest byte of 2^23 they are 2^23 + code. Other machines than NVIDIA's convert a
// byte of a word by one instruction.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>
#include <utility>

#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/limits.h"
#include "core/block_formats.h"

namespace kf::cuda {

constexpr int kChunk = 32, kChunksPerStep = kWarp, kStep = kChunk * kChunksPerStep;

template <class T>
__device__ inline T load_as(const unsigned char* p) {
  if constexpr (kAnyAddress) {
    T v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  return *reinterpret_cast<const T*>(p);
}

// N words from any address, in accesses as wide as it allows; bytes from `bytes` on are 0, and not read. kWhole: there are all of
// them, at an aligned one.
template <int N, bool kWhole>
__device__ inline void load_words(const unsigned char* p, int bytes, std::uint32_t (&w)[N]) {
  const auto alignment = kWhole || kAnyAddress ? 0 : reinterpret_cast<std::uintptr_t>(p);
  if (kAnyAddress && !kWhole && bytes < 4 * N) {
    std::uint32_t last = 0;
    for (int k = bytes / 4 * 4; k < bytes; ++k) last |= std::uint32_t{p[k]} << (k % 4 * 8);
#pragma unroll
    for (int i = 0; i < N; ++i)
      w[i] = i < bytes / 4 ? load_as<std::uint32_t>(p + 4 * i) : i == bytes / 4 ? last : 0;
  } else if (!kWhole && bytes < 4 * N) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      w[i] = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (4 * i + k < bytes) w[i] |= std::uint32_t{p[4 * i + k]} << (8 * k);
    }
  } else if (N % 4 == 0 && alignment % 16 == 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const uint4 v = load_as<uint4>(p + 16 * i);
      w[4 * i] = v.x;
      w[4 * i + 1] = v.y;
      w[4 * i + 2] = v.z;
      w[4 * i + 3] = v.w;
    }
  } else if (alignment % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) w[i] = load_as<std::uint32_t>(p + 4 * i);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      w[i] = std::uint32_t{p[4 * i]} | std::uint32_t{p[4 * i + 1]} << 8 | std::uint32_t{p[4 * i + 2]} << 16 |
             std::uint32_t{p[4 * i + 3]} << 24;
  }
}
// From an even address, as the parts of GGUF's blocks have.
__device__ inline std::uint32_t load_halves(const unsigned char* p) {
  if constexpr (kAnyAddress) return load_as<std::uint32_t>(p);
  return std::uint32_t{load_as<std::uint16_t>(p)} | std::uint32_t{load_as<std::uint16_t>(p + 2)} << 16;
}
template <int N>
__device__ inline void load_halves(const unsigned char* p, std::uint32_t (&w)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) w[i] = load_halves(p + 4 * i);
}
__device__ inline float load_f16(const unsigned char* p) { return widen(F16{load_as<std::uint16_t>(p)}); }

constexpr float kMagic = 8388608.0f;  // 2^23

// Byte k of a word, less `base` - 2^23.
__device__ inline float byte_less(std::uint32_t word, int k, float base) {
#ifdef KF_WARP
  return static_cast<float>(word >> (8 * k) & 255) - (base - kMagic);
#else
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u | static_cast<unsigned>(k))) - base;
#endif
}
__device__ inline void bytes_less(std::uint32_t word, float base, float (&w)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) w[k] = byte_less(word, k, base);
}
constexpr std::uint32_t kNibbles = 0x0f0f0f0fu;
// Of words whose bytes hold elements j (low) and j + 16 (high).
template <int i>
__device__ inline std::uint32_t split_nibbles(const std::uint32_t (&word)[4]) {
  return (i < 4 ? word[i % 4] : word[i % 4] >> 4) & kNibbles;
}

// ---- Scales beside

struct Int4Decoder {
  static constexpr int kStepBytes = kStep / 2, kRows = 4;
  static constexpr bool kScaled = true, kScaledAfter = true;
  std::uint32_t word[4];
  float scale, base;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int valid, float scale_, float zero) {
    load_words<4, kWhole>(row + chunk * 16, valid / 2, word);
#pragma unroll
    for (std::uint32_t& w : word) w ^= 0x88888888u;
    scale = scale_;
    base = kMagic + 8 + zero;
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    const std::uint32_t low = word[i / 2] & kNibbles, high = word[i / 2] >> 4 & kNibbles;
    constexpr int kFirst = i % 2 * 2;
    w[0] = byte_less(low, kFirst, base);
    w[1] = byte_less(high, kFirst, base);
    w[2] = byte_less(low, kFirst + 1, base);
    w[3] = byte_less(high, kFirst + 1, base);
  }
};

struct Int8Decoder {
  static constexpr int kStepBytes = kStep, kRows = 4;
  static constexpr bool kScaled = true, kScaledAfter = true;
  std::uint32_t word[8];
  float scale, base;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int valid, float scale_, float zero) {
    load_words<8, kWhole>(row + chunk * 32, valid, word);
#pragma unroll
    for (std::uint32_t& w : word) w ^= 0x80808080u;
    scale = scale_;
    base = kMagic + 128 + zero;
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(word[i], base, w);
  }
};

template <__nv_fp8_interpretation_t kKind>
struct Fp8Decoder {
  static constexpr int kStepBytes = kStep, kRows = 4;
  static constexpr bool kScaled = true, kScaledAfter = true;
  std::uint32_t word[8];
  float scale;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int valid, float scale_, float) {
    load_words<8, kWhole>(row + chunk * 32, valid, word);
    scale = scale_;
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const __half2_raw pair =
          __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word[i] >> (16 * half)), kKind);
      w[2 * half] = widen(F16{pair.x});
      w[2 * half + 1] = widen(F16{pair.y});
    }
  }
};

// ---- GGUF's blocks

struct Q4_0Decoder {
  static constexpr int kStepBytes = kChunksPerStep * static_cast<int>(sizeof(BlockQ4_0)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = true;
  std::uint32_t word[4];
  float scale;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk * static_cast<int>(sizeof(BlockQ4_0));
    scale = load_f16(p);
    load_halves(p + 2, word);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(split_nibbles<i>(word), kMagic + 8, w);
  }
};

struct Q4_1Decoder {
  static constexpr int kStepBytes = kChunksPerStep * static_cast<int>(sizeof(BlockQ4_1)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = false;
  std::uint32_t word[4];
  float scale, min;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk * static_cast<int>(sizeof(BlockQ4_1));
    scale = load_f16(p);
    min = load_f16(p + 2);
    load_halves(p + 4, word);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(split_nibbles<i>(word), kMagic, w);
#pragma unroll
    for (float& v : w) v = fmaf(v, scale, min);
  }
};

struct Q5_0Decoder {
  static constexpr int kStepBytes = kChunksPerStep * static_cast<int>(sizeof(BlockQ5_0)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = true;
  std::uint32_t word[4], fifth;
  float scale;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk * static_cast<int>(sizeof(BlockQ5_0));
    scale = load_f16(p);
    fifth = load_halves(p + 2);
    load_halves(p + 6, word);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    // Four bits, one into each byte.
    const std::uint32_t bits = (fifth >> (4 * i) & 15) * 0x00204081u & 0x01010101u;
    bytes_less(split_nibbles<i>(word) | bits << 4, kMagic + 16, w);
  }
};

struct Q8_0Decoder {
  static constexpr int kStepBytes = kChunksPerStep * static_cast<int>(sizeof(BlockQ8_0)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = true;
  std::uint32_t word[8];
  float scale;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk * static_cast<int>(sizeof(BlockQ8_0));
    scale = load_f16(p);
    load_halves(p + 2, word);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(word[i] ^ 0x80808080u, kMagic + 128, w);
  }
};

// A chunk is one of the block's eight parts.
struct Q4_KDecoder {
  static constexpr int kStepBytes = kStep / 256 * static_cast<int>(sizeof(BlockQ4_K)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = false;
  std::uint32_t word[8];
  float scale, min;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk / 8 * static_cast<int>(sizeof(BlockQ4_K));
    const int part = chunk % 8;
    const std::uint32_t first = load_halves(p + 4), second = load_halves(p + 8), third = load_halves(p + 12);
    // As scales_of() has them.
    const std::uint32_t scales =
        part < 4 ? first & 0x3f3f3f3fu : (third & kNibbles) | (first >> 2 & 0x30303030u);
    const std::uint32_t mins =
        part < 4 ? second & 0x3f3f3f3fu : (third >> 4 & kNibbles) | (second >> 2 & 0x30303030u);
    const unsigned byte = static_cast<unsigned>(part % 4);
    scale = load_f16(p) * byte_less(scales, static_cast<int>(byte), kMagic);
    min = -load_f16(p + 2) * byte_less(mins, static_cast<int>(byte), kMagic);
    const unsigned char* const nibbles = p + 16 + part / 2 * 32;
    if (kWhole || kAnyAddress || reinterpret_cast<std::uintptr_t>(nibbles) % 16 == 0) {
      load_words<8, true>(nibbles, 32, word);
    } else {
      load_halves(nibbles, word);
    }
    const int shift = part % 2 * 4;
#pragma unroll
    for (std::uint32_t& w : word) w = w >> shift & kNibbles;
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(word[i], kMagic, w);
#pragma unroll
    for (float& v : w) v = fmaf(v, scale, min);
  }
};

// A chunk is two of the block's sixteen parts.
struct Q6_KDecoder {
  static constexpr int kStepBytes = kStep / 256 * static_cast<int>(sizeof(BlockQ6_K)), kRows = 4;
  static constexpr bool kScaled = false, kScaledAfter = false;
  std::uint32_t word[8];
  float first, second;

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int, float, float) {
    const unsigned char* const p = row + chunk / 8 * static_cast<int>(sizeof(BlockQ6_K));
    const int half = chunk % 8 / 4, quarter = chunk % 4;
    const unsigned char *const low = p + half * 64 + quarter % 2 * 32, *const high = p + 128 + half * 32;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      word[i] = (load_halves(low + 4 * i) >> (quarter / 2 * 4) & kNibbles) |
                (load_halves(high + 4 * i) >> (quarter * 2) & 0x03030303u) << 4;
    const float d = load_f16(p + 208);
    const std::uint32_t scales = std::uint32_t{load_as<std::uint16_t>(p + 192 + chunk % 8 * 2)} ^ 0x8080u;
    first = d * byte_less(scales, 0, kMagic + 128);
    second = d * byte_less(scales, 1, kMagic + 128);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
    bytes_less(word[i], kMagic + 32, w);
#pragma unroll
    for (float& v : w) v *= i < 4 ? first : second;
  }
};

// ---- Plain elements

template <class T>
struct PlainDecoder {
  static constexpr int kStepBytes = kStep * static_cast<int>(sizeof(T)), kRows = 2;
  static constexpr bool kScaled = false, kScaledAfter = false;
  std::uint32_t word[kChunk * sizeof(T) / 4];

  template <bool kWhole>
  __device__ void load(const unsigned char* row, int chunk, int valid, float, float) {
    constexpr int kBytes = kChunk * static_cast<int>(sizeof(T));
    load_words<kBytes / 4, kWhole>(row + std::int64_t{chunk} * kBytes,
                                   min(valid, kChunk) * static_cast<int>(sizeof(T)), word);
  }
  template <int i>
  __device__ void quad(float (&w)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (sizeof(T) == 4) {
        w[k] = __uint_as_float(word[4 * i + k]);
      } else {
        w[k] = widen(T{static_cast<std::uint16_t>(word[2 * i + k / 2] >> (k % 2 * 16))});
      }
    }
  }
};

// Calls f(std::integral_constant<int, i>()) for the eight quads of a chunk.
template <class F>
__device__ inline void for_each_quad(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f(std::integral_constant<int, i>()), ...); }
  (std::make_integer_sequence<int, kChunk / 4>());
}

}  // namespace kf::cuda
