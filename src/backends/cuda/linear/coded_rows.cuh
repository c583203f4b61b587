// Rows of weights of codes (int4, i8, fp8, GGUF's blocks) for streamed_kernel. Codes of up to 8 bits are exact in f16 and in bf16, so the
// matrix units multiply them as they are; a chunk's sums, in f32, are then scaled.
//
// A format is a struct F with
//   kDType, order()  which of a lane's 8 neighbours of a chunk comes where: eights() gives them in pairs, in this order
//   kOwnScale        scales lie in the blocks: scale() has that of chunk q + 4 j; else beside the weight
//   kMin             what is added to a scaled code lies there, too; code() has one
//   kHalves          a chunk's halves have scales of their own, half_scale(); a lane's 8 are four neighbours of each
//   eights<T, c>()   the lane's 8 codes of chunk c of a row's step
#pragma once

#include "backends/cuda/device/decoders.cuh"
#include "backends/cuda/linear/scales.cuh"
#include "backends/cuda/linear/streamed.cuh"

namespace kf::cuda::streamed {

// Codes become 16-bit floats without a conversion: as the lowest bits of 2^7 (bf16, 4 or 5 bits of 7) or of 2^10 (f16).
template <class T>
constexpr std::uint32_t kMagicPair = std::is_same_v<T, Bf16> ? 0x43004300u : 0x64006400u;

// Both halves of a, less b's.
template <class T>
__device__ inline std::uint32_t minus_pair(std::uint32_t a, std::uint32_t b) {
  if constexpr (std::is_same_v<T, Bf16>) {
    __nv_bfloat162 x, y;
    *reinterpret_cast<std::uint32_t*>(&x) = a;
    *reinterpret_cast<std::uint32_t*>(&y) = b;
    x = __hsub2(x, y);
    return *reinterpret_cast<std::uint32_t*>(&x);
  } else {
    __half2 x, y;
    *reinterpret_cast<std::uint32_t*>(&x) = a;
    *reinterpret_cast<std::uint32_t*>(&y) = b;
    x = __hsub2(x, y);
    return *reinterpret_cast<std::uint32_t*>(&x);
  }
}

// Bytes 0 and 2 of a word, of which `mask` are a code's bits, and bytes 1 and 3; less kBase, 2^7 or 2^10 and what is not the code's.
template <class T, std::uint32_t kBase>
__device__ inline void byte_codes(std::uint32_t word, std::uint32_t mask, std::uint32_t* to) {
  to[0] = minus_pair<T>((word & mask) | kMagicPair<T>, kMagicPair<T> + kBase * 0x00010001u);
  to[1] = minus_pair<T>((word >> 8 & mask) | kMagicPair<T>, kMagicPair<T> + kBase * 0x00010001u);
}
__device__ constexpr int byte_order(int k) { return (k & 4) | (k & 1) << 1 | (k >> 1 & 1); }

// Four i8, each in a byte, in pairs of neighbours.
template <class T>
__device__ inline void wide_codes(std::uint32_t word, std::uint32_t* to) {
  word ^= 0x80808080u;
  if constexpr (std::is_same_v<T, F16>) {
    to[0] = minus_pair<T>(__byte_perm(word, 0x64646464u, 0x4140u), 0x64806480u);
    to[1] = minus_pair<T>(__byte_perm(word, 0x64646464u, 0x4342u), 0x64806480u);
  } else {
    float v[4];
    bytes_less(word, kMagic + 128, v);
    to[0] = pack_pair<T>(v[0], v[1]);
    to[1] = pack_pair<T>(v[2], v[3]);
  }
}

// Two words from an address that is kAlign beyond a multiple of 4.
template <int kAlign>
__device__ inline void two_words(const unsigned char* p, std::uint32_t (&w)[2]) {
  if constexpr (kAlign == 0) {
    w[0] = load_as<std::uint32_t>(p);
    w[1] = load_as<std::uint32_t>(p + 4);
  } else {
    const std::uint32_t middle = load_as<std::uint32_t>(p + 2);
    w[0] = __byte_perm(load_as<std::uint16_t>(p), middle, 0x5410u);
    w[1] = __byte_perm(middle, load_as<std::uint16_t>(p + 6), 0x5432u);
  }
}

// A word at an address that is a multiple of 2.
__device__ inline std::uint32_t word_at(const unsigned char* p) {
  const auto beyond = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(p)) & 2;
  p -= beyond;
  return __byte_perm(load_as<std::uint32_t>(p), load_as<std::uint32_t>(p + 4), beyond ? 0x5432u : 0x3210u);
}

struct Int4Rows {
  static constexpr DType kDType = DType::int4;
  static constexpr bool kOwnScale = false, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return k % 2 * 4 + k / 2; }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    const std::uint32_t word = load_as<std::uint32_t>(row + c * 16 + q * 4);
    // Two's complement with its sign turned is the code and 8.
    constexpr std::uint32_t kBase = kMagicPair<T> + 0x00080008u;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = minus_pair<T>((word >> (4 * i) & 0x000f000fu) ^ kBase, kBase);
  }
};

struct Int8Rows {
  static constexpr DType kDType = DType::i8;
  static constexpr bool kOwnScale = false, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return k; }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    const uint2 words = load_as<uint2>(row + c * 32 + q * 8);
    wide_codes<T>(words.x, to);
    wide_codes<T>(words.y, to + 2);
  }
};

template <DType kFormat>
struct Fp8Rows {
  static constexpr DType kDType = kFormat;
  static constexpr bool kOwnScale = false, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return k; }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    constexpr auto kKind = kFormat == DType::fp8_e4m3 ? __NV_E4M3 : __NV_E5M2;
    const uint2 words = load_as<uint2>(row + c * 32 + q * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t word = (i < 2 ? words.x : words.y) >> (i % 2 * 16);
      const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word), kKind);
      if constexpr (std::is_same_v<T, F16>) {
        to[i] = std::uint32_t{pair.x} | std::uint32_t{pair.y} << 16;
      } else {
        to[i] = pack_pair<T>(widen(F16{pair.x}), widen(F16{pair.y}));
      }
    }
  }
};

// Blocks whose bytes hold elements j (low) and j + 16 (high), from `at` on: a lane has one or the other of 8 of them.
template <int kAlign>
__device__ inline void half_bytes(const unsigned char* at, int q, std::uint32_t (&w)[2]) {
  two_words<kAlign>(at + q % 2 * 8, w);
  w[0] >>= q / 2 * 4;
  w[1] >>= q / 2 * 4;
}

struct Q4_0Rows {
  static constexpr DType kDType = DType::q4_0;
  static constexpr bool kOwnScale = true, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return byte_order(k); }
  static constexpr int kBytes = 18;
  static __device__ void scale(const unsigned char* row, int q, int j, float& scale, float&) {
    scale = load_f16(row + (q + 4 * j) * kBytes);
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    std::uint32_t w[2];
    half_bytes<(c * kBytes + 2) % 4>(row + c * kBytes + 2, q, w);
    byte_codes<T, 8>(w[0], 0x000f000fu, to);
    byte_codes<T, 8>(w[1], 0x000f000fu, to + 2);
  }
};

struct Q4_1Rows {
  static constexpr DType kDType = DType::q4_1;
  static constexpr bool kOwnScale = true, kMin = true, kHalves = false;
  static __device__ constexpr int order(int k) { return byte_order(k); }
  static constexpr int kBytes = 20;
  static __device__ void scale(const unsigned char* row, int q, int j, float& scale, float& min) {
    scale = load_f16(row + (q + 4 * j) * kBytes);
    min = load_f16(row + (q + 4 * j) * kBytes + 2);
  }
  static __device__ float code(const unsigned char* row, int c, int i) {
    return static_cast<float>(row[c * kBytes + 4 + i % 16] >> (i / 16 * 4) & 15);
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    std::uint32_t w[2];
    half_bytes<0>(row + c * kBytes + 4, q, w);
    byte_codes<T, 0>(w[0], 0x000f000fu, to);
    byte_codes<T, 0>(w[1], 0x000f000fu, to + 2);
  }
};

struct Q5_0Rows {
  static constexpr DType kDType = DType::q5_0;
  static constexpr bool kOwnScale = true, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return byte_order(k); }
  static constexpr int kBytes = 22;
  static __device__ void scale(const unsigned char* row, int q, int j, float& scale, float&) {
    scale = load_f16(row + (q + 4 * j) * kBytes);
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    std::uint32_t w[2];
    half_bytes<(c * kBytes + 6) % 4>(row + c * kBytes + 6, q, w);
    const std::uint32_t fifth = row[c * kBytes + 2 + q];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Four bits, one into each byte.
      const std::uint32_t bits = (fifth >> (4 * i) & 15) * 0x00204081u & 0x01010101u;
      byte_codes<T, 16>((w[i] & kNibbles) | bits << 4, 0x001f001fu, to + 2 * i);
    }
  }
};

struct Q8_0Rows {
  static constexpr DType kDType = DType::q8_0;
  static constexpr bool kOwnScale = true, kMin = false, kHalves = false;
  static __device__ constexpr int order(int k) { return k; }
  static constexpr int kBytes = 34;
  static __device__ void scale(const unsigned char* row, int q, int j, float& scale, float&) {
    scale = load_f16(row + (q + 4 * j) * kBytes);
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    std::uint32_t w[2];
    two_words<(c * kBytes + 2) % 4>(row + c * kBytes + 2 + q * 8, w);
    wide_codes<T>(w[0], to);
    wide_codes<T>(w[1], to + 2);
  }
};

// A step is a block; a chunk is one of its eight parts.
struct Q4_KRows {
  static constexpr DType kDType = DType::q4_k;
  static constexpr bool kOwnScale = true, kMin = true, kHalves = false;
  static __device__ constexpr int order(int k) { return byte_order(k); }
  static __device__ void scale(const unsigned char* row, int q, int j, float& scale, float& min) {
    const unsigned char* const b = row + 4 + q;  // as scales_of() has them
    const std::uint32_t first = b[0], second = b[4], third = b[8];
    const std::uint32_t s = j == 0 ? first & 63 : (third & 15) | (first >> 6 << 4);
    const std::uint32_t m = j == 0 ? second & 63 : (third >> 4) | (second >> 6 << 4);
    scale = load_f16(row) * static_cast<float>(s);
    min = -load_f16(row + 2) * static_cast<float>(m);
  }
  static __device__ float code(const unsigned char* row, int c, int i) {
    return static_cast<float>(row[16 + c / 2 * 32 + i] >> (c % 2 * 4) & 15);
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    const uint2 words = load_as<uint2>(row + 16 + c / 2 * 32 + q * 8);
    byte_codes<T, 0>(words.x >> (c % 2 * 4), 0x000f000fu, to);
    byte_codes<T, 0>(words.y >> (c % 2 * 4), 0x000f000fu, to + 2);
  }
};

// A step is a block: of its 128 bytes of low halves a chunk has those of every other 32, low or high ones; the two upper bits of four
// chunks share a byte.
struct Q6_KRows {
  static constexpr DType kDType = DType::q6_k;
  static constexpr bool kOwnScale = true, kMin = false, kHalves = true;
  static __device__ constexpr int order(int k) { return byte_order(k); }
  static __device__ float half_scale(const unsigned char* row, int c, int half) {
    return load_f16(row + 208) * static_cast<float>(static_cast<std::int8_t>(row[192 + c * 2 + half]));
  }
  template <class T, int c>
  __device__ static void eights(const unsigned char* row, int q, std::uint32_t (&to)[4]) {
    constexpr std::uint32_t kLow = 0x0f0f0f0fu, kHigh = 0x30303030u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t low = word_at(row + c / 4 * 64 + c % 2 * 32 + half * 16 + q * 4),
                          high = word_at(row + 128 + c / 4 * 32 + half * 16 + q * 4);
      constexpr int kUp = 4 - c % 4 * 2;  // where its two bits are to go
      const std::uint32_t bits = kUp >= 0 ? high << (kUp & 7) : high >> (-kUp & 7);
      byte_codes<T, 32>((low >> (c % 4 / 2 * 4) & kLow) | (bits & kHigh), 0x003f003fu, to + 2 * half);
    }
  }
};

template <class T, class F>
struct CodedRows {
  using Args = dequant::Args;
  static constexpr Cut kCut = coded_cut(F::kDType);
  static constexpr int kChunks = kCut.step / kChunk, kEach = (kChunks + 3) / 4;
  // Of a step of a row that may begin at any even address.
  static constexpr int kPieces =
      kCut.row_bytes % 16 == 0 ? kCut.row_bytes / 16 : (kCut.row_bytes + 14 + 15) / 16;
  static __device__ constexpr int order(int k) { return F::order(k); }
  static bool is_gated(const Args& a) { return a.gated; }
  static_assert(kCut.row_stride % 16 == 0);
  // Steps begin anywhere in a chunk of 16 bytes; rows of the weight do not.
  static constexpr bool kShifted = kCut.row_bytes % 16 != 0;
  __device__ static int shift_of(int column) { return column / kCut.step * kCut.row_bytes % 16; }

  // A lane asks for pieces of 16 bytes of its rows, every fourth.
  const unsigned char* rows[2];
  int asked_shift;  // with kShifted: of the first step that is asked for
  int shift;        // with kShifted: of the step that is multiplied next
  // Scales beside, of the step that is multiplied next: of every fourth chunk, which four share, or else of chunk lane % 4 and of every
  // fourth after it.
  dequant::RawScale raw[2][kEach];
  const dequant::Weights* of[2];
  int scale_rows[2];
  int group_bits;  // of a group's columns, a power of two, or a row
  bool hostile;    // with kMin: whether an input is NaN or infinite

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int quarter() { return lane() % 4; }

  __device__ static uint4 ordered(uint4 v) {
    const std::uint32_t w[4] = {v.x, v.y, v.z, v.w};
    std::uint32_t to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int low = order(2 * i), high = order(2 * i + 1);
      to[i] =
          __byte_perm(w[low / 2], w[high / 2], (low % 2 ? 0x32u : 0x10u) | (high % 2 ? 0x7600u : 0x5400u));
    }
    return make_uint4(to[0], to[1], to[2], to[3]);
  }

  // Called by all threads of the block, of the staged inputs.
  __device__ void inspect(const Args& a, const T* inputs, int stride, int slice) {
    if constexpr (F::kMin) {
      bool found = false;
      for (int i = static_cast<int>(threadIdx.x) * 8; i < slice; i += kCut.warps * 32 * 8)
        for (int t = 0; t < a.num_tokens; ++t)
          found = found || is_hostile<T>(*reinterpret_cast<const uint4*>(inputs + t * stride + i));
      hostile = __syncthreads_or(found) != 0;
    }
  }

  __device__ void find(const Args& a, const RowPair& at, int column) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const dequant::Weights& w = a.weights[at.part[h]];
      rows[h] = w.data + at.row[h] * w.row_bytes + column / kCut.step * kCut.row_bytes + quarter() * 16;
    }
    if constexpr (kShifted) asked_shift = shift_of(column);
  }
  __device__ void ask(const Args&, unsigned char* to, int step, int left) const {
    const std::uint32_t address = shared_address(to + lane() / 4 * kCut.row_stride + quarter() * 16);
    int beyond = 0;  // what stands before the step in its first 16 bytes
    if constexpr (kShifted) beyond = left > 0 ? (asked_shift + step * kCut.row_bytes) % 16 : 0;
    const int bytes =
        beyond + max(0, min(left, kCut.step)) / kChunk * kCut.row_bytes / kChunks - quarter() * 16;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i * 4 < kPieces; ++i)
        if (i * 4 + 4 <= kPieces || quarter() < kPieces - i * 4)
          copy_async_bytes(address + static_cast<std::uint32_t>(h * 8 * kCut.row_stride + i * 64),
                           rows[h] + std::int64_t{step} * kCut.row_bytes - beyond + i * 64,
                           max(0, min(16, bytes - i * 64)));
  }

  __device__ void start(const Args& a, const RowPair& at, int column) {
    if constexpr (!F::kOwnScale) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        of[h] = &a.weights[at.part[h]];
        scale_rows[h] = dequant::scale_row(*of[h], at.row[h]);
      }
      group_bits = of[0]->group < a.in ? 31 - __clz(of[0]->group) : 31;
      load_scales(a, column);
    }
    if constexpr (kShifted) shift = shift_of(column);
  }
  __device__ void next(const Args& a, int column) {
    if constexpr (kShifted) shift = shift_of(column);
    // Not those of a whole row.
    if constexpr (!F::kOwnScale)
      if (group_bits < 31) load_scales(a, column);
  }
  static constexpr int kSharedBits = 7;  // of groups that hold four chunks
  __device__ void load_scales(const Args& a, int column) {
    const int first = column + (group_bits < kSharedBits ? quarter() * kChunk : 0);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        raw[h][j] =
            dequant::load_scale(*of[h], scale_rows[h], min(first + 4 * j * kChunk, a.in - 1) >> group_bits);
  }

  template <int kTiles, class Ask, class Next>
  __device__ void multiply(const Args&, const unsigned char* place, const T* tokens, int stride,
                           float (&sums)[kTiles][4], const Ask& ask_again, const Next& load_next) {
    __syncwarp();  // what other lanes have asked for is here
    if constexpr (kShifted) place += shift;
    const unsigned char* const row[2] = {place + lane() / 4 * kCut.row_stride,
                                         place + (lane() / 4 + 8) * kCut.row_stride};
    if constexpr (F::kOwnScale) {
      load_next();
      bool apart = false;
      if constexpr (F::kMin)
        if ((apart = hostile)) multiply_apart(row, tokens, stride, sums);
      if (!apart) multiply_as<1, false>(row, tokens, stride, sums, nullptr, nullptr);
    } else {
      float scale[2][kEach];
      std::uint32_t zero[2][kEach];
      const bool zeros = of[0]->zeros != nullptr || of[1]->zeros != nullptr,
                 shared = group_bits >= kSharedBits;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const float z = static_cast<float>(raw[h][j].zero);
          scale[h][j] = dequant::scale_of(of[h]->scales_dtype, raw[h][j]);
          zero[h][j] = pack_pair<T>(z, z);
        }
      load_next();
      if (!shared) {
        multiply_as<1, true>(row, tokens, stride, sums, scale, zero);
      } else if (zeros) {
        multiply_as<4, true>(row, tokens, stride, sums, scale, zero);
      } else {
        multiply_as<4, false>(row, tokens, stride, sums, scale, zero);
      }
    }
    __syncwarp();  // all have read what is overwritten
    ask_again();
  }

 private:
  // kShare: chunks that are summed before they are scaled. kZero: codes are taken less a zero, which 16 bits hold, too.
  template <int kShare, bool kZero, int kTiles>
  __device__ static void multiply_as(const unsigned char* const (&row)[2], const T* tokens, int stride,
                                     float (&sums)[kTiles][4], const float (*scale)[kEach],
                                     const std::uint32_t (*zero)[kEach]) {
    const int q = quarter();
    constexpr std::uint32_t kOnePair = std::is_same_v<T, Bf16> ? 0x3f803f80u : 0x3c003c00u;
    const std::uint32_t ones[4] = {kOnePair, kOnePair, kOnePair, kOnePair};
    float part[kTiles][4] = {},
          more[kTiles][4] = {};  // of codes times inputs; of the inputs, or of the second halves
    const auto chunk = [&]<int c>(std::integral_constant<int, c>) {
      const int from = (lane() & ~3) | c % 4;
      std::uint32_t codes[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        F::template eights<T, c>(row[h], q, codes[h]);
        if constexpr (kZero) {
          const std::uint32_t z =
              kShare > 1 ? zero[h][c / 4] : __shfl_sync(0xffffffffu, zero[h][c / 4], from);
#pragma unroll
          for (int i = 0; i < 4; ++i) codes[h][i] = minus_pair<T>(codes[h][i], z);
        }
      }
      const std::uint32_t low[4] = {codes[0][0], codes[1][0], codes[0][1], codes[1][1]},
                          high[4] = {codes[0][2], codes[1][2], codes[0][3], codes[1][3]};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const T* const at = tokens + n * 8 * stride + c * kChunk;
        if constexpr (F::kHalves) {
          const uint2 first = *reinterpret_cast<const uint2*>(at - q * 4),
                      second = *reinterpret_cast<const uint2*>(at - q * 4 + kChunk / 2);
          multiply_add<T>(part[n], low, first.x, first.y);
          multiply_add<T>(more[n], high, second.x, second.y);
          continue;
        }
        const uint4 x = *reinterpret_cast<const uint4*>(at);
        multiply_add<T>(part[n], low, x.x, x.y);
        multiply_add<T>(part[n], high, x.z, x.w);
        if constexpr (F::kMin) {
          multiply_add<T>(more[n], ones, x.x, x.y);
          multiply_add<T>(more[n], ones, x.z, x.w);
        }
      }
      if constexpr ((c + 1) % kShare == 0) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float s;
          [[maybe_unused]] float min = 0;
          if constexpr (F::kHalves) {
            s = F::half_scale(row[h], c, 0);
            min = F::half_scale(row[h], c, 1);
          } else if constexpr (F::kOwnScale) {
            F::scale(row[h], c % 4, c / 4, s, min);
          } else {
            s = kShare > 1 ? scale[h][c / 4] : __shfl_sync(0xffffffffu, scale[h][c / 4], from);
          }
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; ++i) {
              sums[n][i] = fmaf(s, part[n][i], sums[n][i]);
              if constexpr (F::kMin || F::kHalves) sums[n][i] = fmaf(min, more[n][i], sums[n][i]);
              part[n][i] = more[n][i] = 0;
            }
        }
      }
    };
    [&]<int... c>(std::integer_sequence<int, c...>) { (chunk(std::integral_constant<int, c>()), ...); }
    (std::make_integer_sequence<int, kChunks>());
  }

  // The same where an input is not finite: a code of 0 is a weight that is none, which infinity has to be multiplied with.
  template <int kTiles>
  __device__ static void multiply_apart(const unsigned char* const (&row)[2], const T* tokens, int stride,
                                        float (&sums)[kTiles][4]) {
    const int q = quarter();
    const T* const inputs = tokens - lane() / 4 * stride;  // of token 0
#pragma unroll 1
    for (int c = 0; c < kChunks; ++c) {
      float scale[2], min[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) F::scale(row[h], c % 4, c / 4, scale[h], min[h]);
#pragma unroll 1
      for (int k = 0; k < 8; ++k) {
        float w[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) w[h] = fmaf(scale[h], F::code(row[h], c, q * 8 + order(k)), min[h]);
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
#pragma unroll 1
            for (int owner = 0; owner < 4; ++owner) {
              const float x = widen(inputs[(n * 8 + owner * 2 + i) * stride + c * kChunk + k]);
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                const float sum = lanes_reduce<Sum>(w[h] * x, 4);
                if (q == owner) sums[n][2 * h + i] += sum;
              }
            }
      }
    }
  }
};

// Calls f(std::type_identity<F>()).
template <class G>
auto with_scaled(DType dtype, const G& f) {
  switch (dtype) {
    case DType::int4:
      return f(std::type_identity<Int4Rows>());
    case DType::i8:
      return f(std::type_identity<Int8Rows>());
    case DType::fp8_e4m3:
      return f(std::type_identity<Fp8Rows<DType::fp8_e4m3>>());
    default:
      return f(std::type_identity<Fp8Rows<DType::fp8_e5m2>>());
  }
}
template <class G>
auto with_blocks(DType dtype, const G& f) {
  switch (dtype) {
    case DType::q4_0:
      return f(std::type_identity<Q4_0Rows>());
    case DType::q4_1:
      return f(std::type_identity<Q4_1Rows>());
    case DType::q5_0:
      return f(std::type_identity<Q5_0Rows>());
    case DType::q8_0:
      return f(std::type_identity<Q8_0Rows>());
    case DType::q6_k:
      return f(std::type_identity<Q6_KRows>());
    default:
      return f(std::type_identity<Q4_KRows>());
  }
}

}  // namespace kf::cuda::streamed

// The launches of one kind of weights by x of one type.
#define KF_DEFINE_CODED(kind, type, T)                                                                   \
  namespace kf::cuda::streamed {                                                                         \
  void launch_##kind##_##type(const dequant::Args& a, const Shape& s, const TensorView& on,              \
                              const RunContext& ctx) {                                                   \
    with_##kind(a.weights[0].dtype,                                                                      \
                [&]<class F>(std::type_identity<F>) { launch<T, CodedRows<T, F>>(a, s, on, ctx); });     \
  }                                                                                                      \
  int clusters_##kind##_##type(DType weight, bool gated, const Shape& s) {                               \
    return with_##kind(                                                                                  \
        weight, [&]<class F>(std::type_identity<F>) { return clusters<T, CodedRows<T, F>>(gated, s); }); \
  }                                                                                                      \
  }
