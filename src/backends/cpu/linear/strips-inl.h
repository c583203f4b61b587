// Strips of a weight: from rows of any strides, from packed strips of 16-bit floats, from GGUF's blocks.
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
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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
  for (std::int64_t lane = 0; lane < rows; ++lane) {
    const T* const row = from + lane * row_stride;
    for (std::int64_t k = 0; k < depth; ++k) to[k * lanes + lane] = row[k * k_stride];
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

// GGUF's block formats: 32 values, their header (f16 scale, then perhaps f16 minimum) first.
template <DType kType>
struct BlockLayout;
template <>
struct BlockLayout<DType::q4_0> {
  static constexpr std::size_t kBytes = 18, kValuesAt = 2;
};
template <>
struct BlockLayout<DType::q4_1> {
  static constexpr std::size_t kBytes = 20, kValuesAt = 4;
};
template <>
struct BlockLayout<DType::q8_0> {
  static constexpr std::size_t kBytes = 34, kValuesAt = 2;
};

using WordTag = hn::RebindToUnsigned<F32Tag>;
using WordVec = hn::Vec<WordTag>;

// Sixteen bytes at `at` of the rows first, first + 4, first + 8, ...: as many as fill a vector.
template <class D>
HWY_INLINE hn::Vec<D> LoadRows(D d, const std::uint8_t* const* rows, std::size_t at) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(rows[0] + at));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadRows(half, rows + hn::MaxLanes(half), at), LoadRows(half, rows, at));
  }
}

// Four words of every row, one row a lane.
struct RowWords {
  WordVec w[4];
};
HWY_INLINE RowWords LoadWords(const std::uint8_t* const* rows, std::size_t at) {
  const WordTag d;
  const hn::Repartition<std::uint64_t, WordTag> pairs;
  const auto r0 = LoadRows(d, rows, at), r1 = LoadRows(d, rows + 1, at), r2 = LoadRows(d, rows + 2, at),
             r3 = LoadRows(d, rows + 3, at);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1)),
             low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3)),
             high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1)),
             high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  return {{hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)),
           hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)),
           hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)),
           hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23))}};
}

// The f16 in the lower half of every lane; the upper half is zero.
HWY_INLINE F32Vec HalfToF32(WordVec bits) {
  const hn::Rebind<std::uint16_t, F32Tag> d16;
  return F16ToF32(F32Tag(), hn::DemoteTo(d16, hn::BitCast(hn::RebindToSigned<F32Tag>(), bits)));
}

// Values of a word that holds eight nibbles a lane: the low nibbles are elements of the first half of the block, the
// high ones of the second. A nibble is not shifted down: masked in place it is q * 2^(4 n), and the scale comes
// multiplied by 2^(-4 n). Products of 11 by 4 bits are exact, so that each value is rounded once.
HWY_INLINE void StoreNibbles(WordVec word, const F32Vec (&scales)[4], F32Vec offset, float* HWY_RESTRICT to) {
  const F32Tag d;
  const WordTag du;
  const hn::RebindToSigned<F32Tag> di;
  const std::size_t lanes = hn::Lanes(d);
  const auto upper = hn::ShiftRight<16>(word);
#pragma GCC unroll 8
  for (std::size_t n = 0; n < 8; ++n) {
    const auto nibble = hn::And(n < 4 ? word : upper, hn::Set(du, 0xFu << (4 * (n % 4))));
    const auto value = hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di, nibble)), scales[n % 4], offset);
    hn::Store(value, d, to + (n / 2 + n % 2 * 16) * lanes);
  }
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
  const std::size_t count =
      std::min(lanes, static_cast<std::size_t>(weight.dim(0)) - static_cast<std::size_t>(strip) * lanes);
  const std::int64_t row_bytes = weight.stride(0) / kElems * static_cast<std::int64_t>(Layout::kBytes);
  const std::uint8_t* rows[hn::MaxLanes(d)];
  // A lane without a row reads the first one, whose header then counts as zero.
  for (std::size_t lane = 0; lane < lanes; ++lane)
    rows[lane] =
        weight.as<const std::uint8_t>() +
        (strip * static_cast<std::int64_t>(lanes) + static_cast<std::int64_t>(lane < count ? lane : 0)) *
            row_bytes +
        k_begin / kElems * static_cast<std::int64_t>(Layout::kBytes);
  const auto present = hn::FirstN(du, count);

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
      const F32Vec offset =
          kType == DType::q4_0 ? hn::Mul(scale, hn::Set(d, -8.0f)) : HalfToF32(hn::ShiftRight<16>(header));
      const F32Vec scales[4] = {scale, hn::Mul(scale, hn::Set(d, 0x1p-4f)),
                                hn::Mul(scale, hn::Set(d, 0x1p-8f)), hn::Mul(scale, hn::Set(d, 0x1p-12f))};
      const RowWords words = LoadWords(rows, at + Layout::kValuesAt);
#pragma GCC unroll 4
      for (std::size_t w = 0; w < 4; ++w) StoreNibbles(words.w[w], scales, offset, to + 4 * w * lanes);
    }
  }
}

// The strip in f32 for columns [k_begin, k_begin + depth): in place where it lies so, else made in `buffer`.
HWY_INLINE const float* StripBlock(const StripWeight& w, std::int64_t strip, std::int64_t k_begin,
                                   std::int64_t depth, float* buffer) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const DType dtype = w.weight.dtype;
  if (w.packed != nullptr) {
    const std::int64_t at = (strip * w.weight.dim(1) + k_begin) * lanes;
    if (dtype == DType::f32) return static_cast<const float*>(w.packed) + at;
    WidenStrip(dtype, static_cast<const std::uint16_t*>(w.packed) + at, depth, buffer);
    return buffer;
  }
  switch (dtype) {
    case DType::f32:
      GatherStrip(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q4_0:
      DecodeStrip<DType::q4_0>(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q4_1:
      DecodeStrip<DType::q4_1>(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q8_0:
      DecodeStrip<DType::q8_0>(w.weight, strip, k_begin, depth, buffer);
      break;
    default: {  // f16, bf16: gathered into the upper half of the buffer, widened from there
      auto* const narrow = reinterpret_cast<std::uint16_t*>(buffer) + depth * lanes;
      GatherStrip(w.weight, strip, k_begin, depth, narrow);
      WidenStrip(dtype, narrow, depth, buffer);
    }
  }
  return buffer;
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
