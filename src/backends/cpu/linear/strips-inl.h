// Strips of a weight: from rows of any strides, from packed strips of 16-bit floats, from GGUF's blocks, from codes with
// scales beside them, from sparse values.
#if defined(KF_CPU_LINEAR_STRIPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_STRIPS_INL_H_
#undef KF_CPU_LINEAR_STRIPS_INL_H_
#else
#define KF_CPU_LINEAR_STRIPS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/linear/quantized-inl.h"
#include "backends/cpu/linear/sparse-inl.h"
#include "backends/cpu/simd/words-inl.h"
#include "core/block_formats.h"
#include "core/half.h"
#include "core/quantized.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where the rows of a strip begin, `skip` bytes into each. Returns how many there are; a lane without a row reads the
// first one, and its scale then counts as zero.
HWY_INLINE std::size_t RowsOfStrip(const TensorView& weight, std::int64_t strip, std::int64_t skip,
                                   const std::uint8_t** rows) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t first = strip * lanes, count = std::min(lanes, weight.dim(0) - first);
  for (std::int64_t lane = 0; lane < lanes; ++lane)
    rows[lane] =
        static_cast<const std::uint8_t*>(weight.at((first + (lane < count ? lane : 0)) * weight.stride(0))) +
        skip;
  return static_cast<std::size_t>(count);
}

// The same of rows that are contiguous, 16 bytes of each at a time. Returns how many columns that made.
template <class T>
HWY_INLINE std::int64_t GatherWords(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                                    std::int64_t depth, T* HWY_RESTRICT to) {
  const WordTag du;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(du));
  constexpr std::int64_t kColumns = 16 / sizeof(T);
  const std::uint8_t* rows[hn::MaxLanes(du)];
  const auto present =
      hn::FirstN(du, RowsOfStrip(weight, strip, k_begin * static_cast<std::int64_t>(sizeof(T)), rows));
  std::int64_t k = 0;
  for (; k + kColumns <= depth; k += kColumns, to += kColumns * lanes) {
    const RowWords words = LoadWords(rows, static_cast<std::size_t>(k) * sizeof(T));
    for (std::int64_t w = 0; w < 4; ++w) {
      const auto word = hn::IfThenElseZero(present, words.w[w]);
      if constexpr (sizeof(T) == 4) {
        hn::StoreU(word, du, reinterpret_cast<std::uint32_t*>(to + w * lanes));
      } else {  // two columns
        const hn::Rebind<std::uint16_t, F32Tag> d16;
        const hn::RebindToSigned<F32Tag> di;
        const auto low = hn::And(word, hn::Set(du, 0xFFFFu)), high = hn::ShiftRight<16>(word);
        hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, low)), d16, to + 2 * w * lanes);
        hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, high)), d16, to + (2 * w + 1) * lanes);
      }
    }
  }
  return k;
}

// to[k][lane] = row `strip * lanes + lane` of the weight at column k_begin + k; zero where there is no such
// row.
template <class T>
HWY_INLINE void GatherStrip(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                            std::int64_t depth, T* HWY_RESTRICT to) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t rows = std::min(lanes, weight.dim(0) - strip * lanes);
  const std::int64_t row_stride = weight.stride(0), k_stride = weight.stride(1);
  const T* const from = weight.as<T>() + strip * lanes * row_stride + k_begin * k_stride;
  if (rows < lanes) std::fill(to, to + depth * lanes, T{});
  if (row_stride == 1) {  // an x @ W weight, seen transposed: features are neighbours
    for (std::int64_t k = 0; k < depth; ++k)
      std::memcpy(to + k * lanes, from + k * k_stride, static_cast<std::size_t>(rows) * sizeof(T));
    return;
  }
  std::int64_t begin = 0;
  if (k_stride == 1) begin = GatherWords(weight, strip, k_begin, depth, to);
  for (std::int64_t lane = 0; lane < rows; ++lane) {
    const T* const row = from + lane * row_stride;
    for (std::int64_t k = begin; k < depth; ++k) to[k * lanes + lane] = row[k * k_stride];
  }
}

// 16-bit floats to f32, in order, so that `from` may be the upper half of `to`.
HWY_INLINE void WidenStrip(DType dtype, const std::uint16_t* from, std::int64_t depth, float* to) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::int64_t k = 0; k < depth; ++k, from += lanes, to += lanes)
    hn::Store(dtype == DType::f16 ? LoadF32(d, reinterpret_cast<const F16*>(from))
                                  : LoadF32(d, reinterpret_cast<const Bf16*>(from)),
              d, to);
}

// GGUF's formats of 32 values, their header (f16 scale, then perhaps f16 minimum or fifth bits) first.
template <DType kType>
struct BlockLayout;
template <>
struct BlockLayout<DType::q4_0> {
  static constexpr std::size_t kBytes = sizeof(BlockQ4_0), kValuesAt = offsetof(BlockQ4_0, nibbles);
};
template <>
struct BlockLayout<DType::q4_1> {
  static constexpr std::size_t kBytes = sizeof(BlockQ4_1), kValuesAt = offsetof(BlockQ4_1, nibbles);
};
template <>
struct BlockLayout<DType::q5_0> {
  static constexpr std::size_t kBytes = sizeof(BlockQ5_0), kValuesAt = offsetof(BlockQ5_0, nibbles);
};
template <>
struct BlockLayout<DType::q8_0> {
  static constexpr std::size_t kBytes = sizeof(BlockQ8_0), kValuesAt = offsetof(BlockQ8_0, q);
};

// The f16 in the lower half of every lane; the upper half is zero.
HWY_INLINE F32Vec HalfToF32(WordVec bits) {
  const hn::Rebind<std::uint16_t, F32Tag> d16;
  return F16ToF32(F32Tag(), hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<F32Tag>(), bits)));
}

// A nibble is not shifted down: masked in place it is q * 2^(4 n), and the scale comes multiplied by 2^(-4 n). Products
// of 11 by 4 bits, in q4_k of 17 by 4, are exact, so that each value is rounded once.
struct NibbleScales {
  F32Vec v[4];
  explicit HWY_INLINE NibbleScales(F32Vec scale)
      : v{scale, hn::Mul(scale, hn::Set(F32Tag(), 0x1p-4f)), hn::Mul(scale, hn::Set(F32Tag(), 0x1p-8f)),
          hn::Mul(scale, hn::Set(F32Tag(), 0x1p-12f))} {}
};

// Nibble n (0 to 7) of the word of every lane, times 2^(4 (n % 4)).
HWY_INLINE F32Vec NibbleInPlace(WordVec word, std::size_t n) {
  const WordTag du;
  const auto bits = hn::And(n < 4 ? word : hn::ShiftRight<16>(word), hn::Set(du, 0xFu << (4 * (n % 4))));
  return hn::ConvertTo(F32Tag(), hn::BitCast(hn::RebindToSigned<F32Tag>(), bits));
}

// The nibble itself, times its scale, plus the offset.
HWY_INLINE F32Vec Nibble(WordVec word, std::size_t n, const NibbleScales& scales, F32Vec offset) {
  return hn::MulAdd(NibbleInPlace(word, n), scales.v[n % 4], offset);
}

// Four bytes of every row are loaded as a vector of words, one row a lane, so that masks and shifts of it give vector
// after vector of the strip.
template <DType kType>
HWY_INLINE void DecodeStrip(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                            std::int64_t depth, float* HWY_RESTRICT to) {
  using Layout = BlockLayout<kType>;
  constexpr std::int64_t kElems = 32;
  const F32Tag d;
  const WordTag du;
  const hn::RebindToSigned<F32Tag> di;
  const std::size_t lanes = hn::Lanes(d);
  const std::uint8_t* rows[hn::MaxLanes(d)];
  const std::int64_t skip = k_begin / kElems * static_cast<std::int64_t>(Layout::kBytes);
  const auto present = hn::FirstN(du, RowsOfStrip(weight, strip, skip, rows));

  for (std::int64_t block = 0; block < depth / kElems; ++block, to += kElems * lanes) {
    const auto at = static_cast<std::size_t>(block) * Layout::kBytes;
    const auto header = hn::IfThenElseZero(present, LoadWords(rows, at).w[0]);
    const auto scale = HalfToF32(hn::And(header, hn::Set(du, 0xFFFFu)));
    if constexpr (kType == DType::q8_0) {
      for (std::size_t half = 0; half < 2; ++half) {
        const RowWords words = LoadWords(rows, at + Layout::kValuesAt + 16 * half);
#pragma GCC unroll 4
        for (std::size_t w = 0; w < 4; ++w) {
          auto bits = words.w[w];
          float* const out = to + (16 * half + 4 * w) * lanes;
#pragma GCC unroll 4
          for (std::size_t byte = 0; byte < 4; ++byte) {
            const auto q = hn::ShiftRight<24>(hn::BitCast(di, hn::ShiftLeft<24>(bits)));
            hn::Store(hn::Mul(hn::ConvertTo(d, q), scale), d, out + byte * lanes);
            bits = hn::ShiftRight<8>(bits);
          }
        }
      }
    } else {
      const NibbleScales scales(scale);
      F32Vec offset = HalfToF32(hn::ShiftRight<16>(header));
      if constexpr (kType == DType::q4_0) offset = hn::Mul(scale, hn::Set(d, -8.0f));
      if constexpr (kType == DType::q5_0) offset = hn::Mul(scale, hn::Set(d, -16.0f));
      const RowWords words = LoadWords(rows, at + Layout::kValuesAt);
      WordVec fifths = hn::Zero(du);
      if constexpr (kType == DType::q5_0) fifths = LoadWords(rows, at + offsetof(BlockQ5_0, high)).w[0];
#pragma GCC unroll 4
      for (std::size_t w = 0; w < 4; ++w) {
#pragma GCC unroll 8
        for (std::size_t n = 0; n < 8;
             ++n) {  // low nibbles are the first half of the block, high ones the second
          const std::size_t k = 4 * w + n / 2 + n % 2 * 16;
          F32Vec from = offset;
          if constexpr (kType == DType::q5_0)  // a fifth bit is 16, by which the offset is less
            from = hn::IfThenZeroElse(hn::RebindMask(d, hn::TestBit(fifths, hn::Set(du, 1u << k))), offset);
          hn::Store(Nibble(words.w[w], n, scales, from), d, to + k * lanes);
        }
      }
    }
  }
}

// Scales of the parts of a K block, a row a lane; absent rows have zeros.
template <std::size_t kParts>
struct PartScales {
  alignas(64) float scale[kParts][hn::MaxLanes(F32Tag())] = {}, min[kParts][hn::MaxLanes(F32Tag())] = {};
};

// q4_k and q6_k, 32 elements at a time, which blocks of the reduction divide.
template <DType kType>
HWY_INLINE void DecodeStripK(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                             std::int64_t depth, float* HWY_RESTRICT to) {
  constexpr bool kIsQ4 = kType == DType::q4_k;
  constexpr std::int64_t kElems = BlockQ4_K::kElems;
  constexpr std::size_t kBytes = kIsQ4 ? sizeof(BlockQ4_K) : sizeof(BlockQ6_K);
  constexpr std::size_t kParts = kIsQ4 ? 8 : 16;
  const F32Tag d;
  const WordTag du;
  const hn::RebindToSigned<F32Tag> di;
  const std::size_t lanes = hn::Lanes(d);
  const std::uint8_t* rows[hn::MaxLanes(d)];
  const std::size_t count = RowsOfStrip(weight, strip, 0, rows);
  PartScales<kParts> scales;
  for (std::int64_t k = k_begin; k < k_begin + depth; k += 32, to += 32 * lanes) {
    const auto at = static_cast<std::size_t>(k / kElems) * kBytes;
    const auto unit = static_cast<std::size_t>(k % kElems / 32);
    if (unit == 0 || k == k_begin)
      for (std::size_t row = 0; row < count; ++row) {
        const std::uint8_t* const block = rows[row] + at;
        if constexpr (kIsQ4) {
          std::uint16_t halves[2];
          std::memcpy(halves, block, sizeof halves);
          const float scale = f16_to_f32(halves[0]), min = f16_to_f32(halves[1]);
          const ScalesQ4_K s = scales_of(block + offsetof(BlockQ4_K, scales));
          for (std::size_t part = 0; part < kParts; ++part) {
            scales.scale[part][row] = scale * s.scale[part];
            scales.min[part][row] = -(min * s.min[part]);
          }
        } else {
          std::uint16_t half;
          std::memcpy(&half, block + offsetof(BlockQ6_K, d), sizeof half);
          const float scale = f16_to_f32(half);
          const auto* const s = reinterpret_cast<const std::int8_t*>(block + offsetof(BlockQ6_K, scales));
          for (std::size_t part = 0; part < kParts; ++part) scales.scale[part][row] = scale * s[part];
        }
      }
    if constexpr (kIsQ4) {
      const NibbleScales nibble_scales(hn::Load(d, scales.scale[unit]));
      const F32Vec offset = hn::Load(d, scales.min[unit]);
      for (std::size_t h = 0; h < 2; ++h) {
        const RowWords words = LoadWords(rows, at + offsetof(BlockQ4_K, nibbles) + unit / 2 * 32 + 16 * h);
#pragma GCC unroll 4
        for (std::size_t w = 0; w < 4; ++w) {
          const auto word = unit % 2 == 0 ? words.w[w] : hn::ShiftRight<4>(words.w[w]);
#pragma GCC unroll 4
          for (std::size_t byte = 0; byte < 4; ++byte)
            hn::Store(Nibble(word, 2 * byte, nibble_scales, offset), d, to + (16 * h + 4 * w + byte) * lanes);
        }
      }
    } else {
      const std::size_t half = unit / 4, quarter = unit % 4;
      for (std::size_t h = 0; h < 2; ++h) {
        const F32Vec scale = hn::Load(d, scales.scale[2 * unit + h]);
        const RowWords low = LoadWords(rows, at + half * 64 + quarter % 2 * 32 + 16 * h),
                       high = LoadWords(rows, at + offsetof(BlockQ6_K, high) + half * 32 + 16 * h);
#pragma GCC unroll 4
        for (std::size_t w = 0; w < 4; ++w) {
          const auto low4 =
              hn::And(quarter < 2 ? low.w[w] : hn::ShiftRight<4>(low.w[w]), hn::Set(du, 0x0f0f0f0fu));
          const auto high2 =
              hn::And(hn::ShiftRightSame(high.w[w], static_cast<int>(2 * quarter)), hn::Set(du, 0x03030303u));
          auto q = hn::Or(low4, hn::ShiftLeft<4>(high2));
#pragma GCC unroll 4
          for (std::size_t byte = 0; byte < 4; ++byte) {
            const auto code = hn::Sub(hn::BitCast(di, hn::And(q, hn::Set(du, 63u))), hn::Set(di, 32));
            hn::Store(hn::Mul(hn::ConvertTo(d, code), scale), d, to + (16 * h + 4 * w + byte) * lanes);
            q = hn::ShiftRight<8>(q);
          }
        }
      }
    }
  }
}

// Codes of 32 elements of every row at `at` of `rows` as weights: (code - zero) * scale, as the reference rounds it.
template <DType kType>
HWY_INLINE void DecodeCodes(const std::uint8_t* const* rows, std::size_t at, F32Vec scale, F32Vec zero,
                            float* HWY_RESTRICT to) {
  const F32Tag d;
  const WordTag du;
  const hn::RebindToSigned<F32Tag> di;
  const std::size_t lanes = hn::Lanes(d);
  if constexpr (kType == DType::int4) {
    // Nibbles stay where they are in the word, as in Nibble(): the n-th is q + 8 times 2^(4 n).
    const NibbleScales scales(scale);
    const F32Vec lowest = hn::Add(zero, hn::Set(d, 8.0f));
    const F32Vec zeros[4] = {lowest, hn::Mul(lowest, hn::Set(d, 0x1p4f)), hn::Mul(lowest, hn::Set(d, 0x1p8f)),
                             hn::Mul(lowest, hn::Set(d, 0x1p12f))};
    const RowWords words = LoadWords(rows, at);
#pragma GCC unroll 4
    for (std::size_t w = 0; w < 4; ++w) {
      const auto word = hn::Xor(words.w[w], hn::Set(du, kInt4Signs));
#pragma GCC unroll 8
      for (std::size_t n = 0; n < 8; ++n) {
        const auto value = hn::Mul(hn::Sub(NibbleInPlace(word, n), zeros[n % 4]), scales.v[n % 4]);
        hn::Store(value, d, to + (8 * w + n) * lanes);
      }
    }
  } else {
    for (std::size_t half = 0; half < 2; ++half) {
      const RowWords words = LoadWords(rows, at + 16 * half);
#pragma GCC unroll 4
      for (std::size_t w = 0; w < 4; ++w) {
        auto bits = words.w[w];
#pragma GCC unroll 4
        for (std::size_t byte = 0; byte < 4; ++byte) {
          F32Vec value;
          if constexpr (kType == DType::i8) {
            const auto q = hn::ShiftRight<24>(hn::BitCast(di, hn::ShiftLeft<24>(bits)));
            value = hn::Mul(hn::Sub(hn::ConvertTo(d, q), zero), scale);
          } else {
            const auto code = Fp8ToF16<kType>(du, hn::And(bits, hn::Set(du, 0xFFu)));
            value = hn::Mul(hn::Mul(HalfToF32(code), hn::Set(d, kFp8Unit<kType>)), scale);
          }
          hn::Store(value, d, to + (16 * half + 4 * w + byte) * lanes);
          bits = hn::ShiftRight<8>(bits);
        }
      }
    }
  }
}

// A weight with scales beside it, 32 elements at a time, which groups are multiples of.
template <DType kType>
HWY_INLINE void DecodeStripScaled(const TensorView& weight, const Quantization& q, std::int64_t strip,
                                  std::int64_t k_begin, std::int64_t depth, float* HWY_RESTRICT to) {
  constexpr std::int64_t kElems = 32, kElemsPerByte = kType == DType::int4 ? 2 : 1;
  constexpr std::size_t kBytes = kElems / kElemsPerByte;
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::uint8_t* rows[hn::MaxLanes(d)];
  const auto count = static_cast<std::int64_t>(RowsOfStrip(weight, strip, k_begin / kElemsPerByte, rows));
  const ScaleGrid grid = scale_grid(weight, q);
  alignas(64) float scales[hn::MaxLanes(d)] = {}, zeros[hn::MaxLanes(d)] = {};
  std::int64_t group = -1;
  std::size_t at = 0;
  for (std::int64_t k = 0; k < depth; k += kElems, at += kBytes, to += kElems * lanes) {
    if (const std::int64_t here = (k_begin + k) / grid.columns; here != group) {
      group = here;
      for (std::int64_t row = 0; row < count; ++row) {
        scales[row] = scale_at(q, grid, strip * lanes + row, group);
        zeros[row] = zero_at(q, grid, strip * lanes + row, group);
      }
    }
    const F32Vec scale = hn::Load(d, scales), zero = hn::Load(d, zeros);
    if (k + kElems <= depth) {
      DecodeCodes<kType>(rows, at, scale, zero, to);
      continue;
    }
    // The end of the rows: what lies behind them is not read.
    alignas(64) std::uint8_t ends[hn::MaxLanes(d)][kBytes] = {};
    const std::uint8_t* end_rows[hn::MaxLanes(d)];
    for (std::int64_t row = 0; row < lanes; ++row) {
      std::memcpy(ends[row], rows[row] + at, static_cast<std::size_t>((depth - k) / kElemsPerByte));
      end_rows[row] = ends[row];
    }
    DecodeCodes<kType>(end_rows, 0, scale, zero, to);
  }
}

// A sparse weight: its rows expanded, then turned, some columns at a time.
template <DType kType>
HWY_INLINE void DecodeSparseRows(const Weight& w, std::int64_t strip, std::int64_t k_begin,
                                 std::int64_t depth, float* HWY_RESTRICT to) {
  constexpr bool kScaled = SparseValues<kType>::kScaled;
  constexpr std::size_t kLanes = hn::MaxLanes(F32Tag());
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(kLanes);
  const std::int64_t count = std::min(lanes, w.layout.dim(0) - strip * lanes);
  const ScaleGrid grid = kScaled ? scale_grid(w.layout, w.quantization) : ScaleGrid{};
  SparseRow<kType> rows[kLanes];
  alignas(64) float lines[kLanes][kSparseColumns] = {};
  const std::uint8_t* line_rows[kLanes];
  for (std::int64_t lane = 0; lane < lanes; ++lane)
    line_rows[lane] = reinterpret_cast<const std::uint8_t*>(lines[lane]);
  for (std::int64_t lane = 0; lane < count; ++lane) rows[lane].Start(w, strip * lanes + lane, k_begin);
  SparseScale scales[kLanes];
  std::int64_t group = -1;
  for (std::int64_t k = 0; k < depth; k += kSparseColumns, to += kSparseColumns * lanes) {
    if constexpr (kScaled) {
      if (const std::int64_t here = (k_begin + k) / grid.columns; here != group) {
        group = here;
        for (std::int64_t lane = 0; lane < count; ++lane)
          scales[lane] = {hn::Set(d, scale_at(w.quantization, grid, strip * lanes + lane, group)),
                          hn::Set(d, zero_at(w.quantization, grid, strip * lanes + lane, group))};
      }
    }
    for (std::int64_t lane = 0; lane < count; ++lane) {
      SparseRow<kType>& row = rows[lane];
      const std::uint32_t bits = mask_bits(row.mask, row.mask_bytes, k_begin + k);
      std::int64_t value;
      const std::uint8_t* const from = row.Next(bits, &value);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < kSparseColumns / kLanes; ++v) {
        const std::uint32_t part = bits >> (v * kLanes) & ((1u << kLanes) - 1);
        hn::Store(SparseVector<kType>(from, value, part, scales[lane]), d, lines[lane] + v * kLanes);
        value += std::popcount(part);
      }
    }
    const std::int64_t columns = std::min(kSparseColumns, depth - k);
    for (std::int64_t c = 0; c < columns; c += 4) {
      const RowWords words = LoadWords(line_rows, static_cast<std::size_t>(c) * sizeof(float));
      for (std::int64_t i = 0; i < std::min<std::int64_t>(4, columns - c); ++i)
        hn::Store(hn::BitCast(d, words.w[i]), d, to + (c + i) * lanes);
    }
  }
}
HWY_NOINLINE void DecodeStripSparse(const Weight& w, std::int64_t strip, std::int64_t k_begin,
                                    std::int64_t depth, float* HWY_RESTRICT to) {
  WithSparseDType(w.layout.dtype, [&]<DType kType>(std::integral_constant<DType, kType>)
                                      HWY_ATTR { DecodeSparseRows<kType>(w, strip, k_begin, depth, to); });
}

// The strip in f32 for columns [k_begin, k_begin + depth): in place where it lies so, else made in `buffer`.
HWY_NOINLINE const float* StripBlock(const StripWeight& w, std::int64_t strip, std::int64_t k_begin,
                                     std::int64_t depth, float* buffer) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const DType dtype = w.layout.dtype;
  if (w.sparsity.present()) {
    DecodeStripSparse(w, strip, k_begin, depth, buffer);
    return buffer;
  }
  if (w.packed != nullptr) {
    const std::int64_t at = (strip * w.layout.dim(1) + k_begin) * lanes;
    if (dtype == DType::f32) return static_cast<const float*>(w.packed) + at;
    WidenStrip(dtype, static_cast<const std::uint16_t*>(w.packed) + at, depth, buffer);
    return buffer;
  }
  switch (dtype) {
    case DType::f32:
      GatherStrip(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q4_0:
      DecodeStrip<DType::q4_0>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q4_1:
      DecodeStrip<DType::q4_1>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q5_0:
      DecodeStrip<DType::q5_0>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q8_0:
      DecodeStrip<DType::q8_0>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q4_k:
      DecodeStripK<DType::q4_k>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::q6_k:
      DecodeStripK<DType::q6_k>(w.layout, strip, k_begin, depth, buffer);
      break;
    case DType::int4:
      DecodeStripScaled<DType::int4>(w.layout, w.quantization, strip, k_begin, depth, buffer);
      break;
    case DType::i8:
      DecodeStripScaled<DType::i8>(w.layout, w.quantization, strip, k_begin, depth, buffer);
      break;
    case DType::fp8_e4m3:
      DecodeStripScaled<DType::fp8_e4m3>(w.layout, w.quantization, strip, k_begin, depth, buffer);
      break;
    case DType::fp8_e5m2:
      DecodeStripScaled<DType::fp8_e5m2>(w.layout, w.quantization, strip, k_begin, depth, buffer);
      break;
    default: {  // f16, bf16: gathered into the upper half of the buffer, widened from there
      auto* const narrow = reinterpret_cast<std::uint16_t*>(buffer) + depth * lanes;
      GatherStrip(w.layout, strip, k_begin, depth, narrow);
      WidenStrip(dtype, narrow, depth, buffer);
    }
  }
  return buffer;
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
