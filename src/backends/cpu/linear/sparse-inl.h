// Values of a sparse weight, expanded to the columns that its mask says.
#if defined(KF_CPU_LINEAR_SPARSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_SPARSE_INL_H_
#undef KF_CPU_LINEAR_SPARSE_INL_H_
#else
#define KF_CPU_LINEAR_SPARSE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/linear/quantized-inl.h"
#include "backends/cpu/linear/sparse_tables.h"
#include "core/quantized.h"
#include "core/sparse.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns that are expanded together: a word of the mask.
inline constexpr std::int64_t kSparseColumns = 32;
inline constexpr std::size_t kSparseLanes = hn::MaxLanes(F32Tag());

// Of a weight's elements, those that it has a value of.
HWY_INLINE double ShareStored(const Weight& w) {
  if (w.sparsity.m != 0) return static_cast<double>(w.sparsity.n) / static_cast<double>(w.sparsity.m);
  const std::int64_t elements = std::max<std::int64_t>(1, w.layout.dim(0) * w.layout.dim(1));
  return static_cast<double>(end_of_values(w.layout, w.sparsity)) / static_cast<double>(elements);
}

// The values of lanes whose bit is set (of as many bits as there are lanes), in order from the first of `v` on; 0 in the others.
HWY_INLINE F32Vec ExpandBits(F32Vec v, std::uint32_t bits) {
#if HWY_TARGET <= HWY_AVX3
  // In assembly, for Zen 4: it expands from memory in 6 cycles, and from a register in 2, but only after whoever wrote the
  // destination last, so that one is a fresh zero and the zeroing form is not used.
  __m512 expanded = _mm512_setzero_ps();
  asm("vexpandps %2, %0%{%1%}" : "+v"(expanded) : "Yk"(static_cast<__mmask16>(bits)), "v"(v.raw));
  return hn::Vec<F32Tag>{expanded};
#elif HWY_TARGET == HWY_AVX2
  // The permutation looks at the lowest three bits of a lane alone.
  const hn::RebindToSigned<F32Tag> di;
  const auto entry =
      hn::PromoteTo(di, hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), kExpandTable.lanes[bits]));
  const auto absent = hn::BitCast(F32Tag(), hn::BroadcastSignBit(entry));
  return hn::AndNot(absent, hn::Vec<F32Tag>{_mm256_permutevar8x32_ps(v.raw, entry.raw)});
#else
  const F32Tag d;
  static_assert(kSparseLanes <= 8);
  const hn::RebindToSigned<F32Tag> di;
  const auto entry =
      hn::PromoteTo(di, hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), kExpandTable.lanes[bits]));
  const auto index = hn::And(entry, hn::Set(di, static_cast<std::int32_t>(kSparseLanes - 1)));
  const auto absent = hn::BitCast(d, hn::BroadcastSignBit(entry));
  return hn::AndNot(absent, hn::TableLookupLanes(v, hn::IndicesFromVec(d, index)));
#endif
}

// How values of a dtype are read: a vector of them from value `at` on, in f32. A vector reads kSlack values or less.
template <DType kType>
struct SparseValues;

template <class T>
struct PlainSparseValues {
  static constexpr std::int64_t kSlack = static_cast<std::int64_t>(kSparseLanes);
  static constexpr bool kScaled = false;
  static HWY_INLINE const std::uint8_t* Address(const std::uint8_t* first, std::int64_t at) {
    return first + at * static_cast<std::int64_t>(sizeof(T));
  }
  static HWY_INLINE F32Vec Load(const std::uint8_t* first, std::int64_t at) {
    const auto* const p = reinterpret_cast<const T*>(first) + at;
    if constexpr (sizeof(T) == 4)
      return hn::LoadU(F32Tag(), p);
    else
      return LoadF32(F32Tag(), p);
  }
};
template <>
struct SparseValues<DType::f32> : PlainSparseValues<float> {};
template <>
struct SparseValues<DType::f16> : PlainSparseValues<F16> {};
template <>
struct SparseValues<DType::bf16> : PlainSparseValues<Bf16> {};

template <DType kType>
struct ByteSparseValues {
  static constexpr std::int64_t kSlack = static_cast<std::int64_t>(kSparseLanes);
  static constexpr bool kScaled = true;
  static HWY_INLINE const std::uint8_t* Address(const std::uint8_t* first, std::int64_t at) {
    return first + at;
  }
  static HWY_INLINE F32Vec Load(const std::uint8_t* first, std::int64_t at) {
    const F32Tag d;
    if constexpr (kType == DType::i8) {
      const hn::RebindToSigned<F32Tag> di;
      const auto bytes =
          hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), reinterpret_cast<const std::int8_t*>(first) + at);
      return hn::ConvertTo(d, hn::PromoteTo(di, bytes));
    } else {
      const hn::Rebind<std::uint16_t, F32Tag> d16;
      const auto code = hn::PromoteTo(d16, hn::LoadU(hn::Rebind<std::uint8_t, F32Tag>(), first + at));
      return hn::Mul(F16ToF32(d, Fp8ToF16<kType>(d16, code)), hn::Set(d, kFp8Unit<kType>));
    }
  }
};
template <>
struct SparseValues<DType::i8> : ByteSparseValues<DType::i8> {};
template <>
struct SparseValues<DType::fp8_e4m3> : ByteSparseValues<DType::fp8_e4m3> {};
template <>
struct SparseValues<DType::fp8_e5m2> : ByteSparseValues<DType::fp8_e5m2> {};

template <>
struct SparseValues<DType::int4> {
  // Eight nibbles are a shift of nine bytes' eight.
  static constexpr std::int64_t kSlack = static_cast<std::int64_t>(kSparseLanes) + 16;
  static constexpr bool kScaled = true;
  static HWY_INLINE const std::uint8_t* Address(const std::uint8_t* first, std::int64_t at) {
    return first + at / 2;
  }

  // Nibbles from `at` on, as many as a word has, in the lanes of `d`, at most eight.
  template <class D>
  static HWY_INLINE hn::Vec<D> Codes(D d, const std::uint8_t* first, std::int64_t at) {
    if constexpr (hn::MaxLanes(D()) > 8) {
      const hn::Half<D> half;
      return hn::Combine(d, Codes(half, first, at + 8), Codes(half, first, at));
    } else {
      std::uint64_t nibbles;
      std::memcpy(&nibbles, first + at / 2, sizeof nibbles);
      const auto word = hn::Set(d, static_cast<std::int32_t>(nibbles >> (at % 2 * 4)));
      // The nibble of a lane at the top of it, and down again with its sign.
      const auto shift = hn::Sub(hn::Set(d, 28), hn::ShiftLeft<2>(hn::Iota(d, 0)));
      return hn::ShiftRight<28>(hn::Shl(word, shift));
    }
  }
  static HWY_INLINE F32Vec Load(const std::uint8_t* first, std::int64_t at) {
    return hn::ConvertTo(F32Tag(), Codes(hn::RebindToSigned<F32Tag>(), first, at));
  }
};

// Walks a row, kSparseColumns at a time.
template <DType kType>
struct SparseRow {
  using Values = SparseValues<kType>;
  // Whole vectors of values from a position on, and what a vector reads behind the last.
  static constexpr std::int64_t kReach = kSparseColumns + Values::kSlack;

  const std::uint8_t* first = nullptr;  // of all values
  const std::uint8_t* mask = nullptr;
  std::int64_t at = 0, end = 0;  // the next value, and behind the last of all rows
  std::int64_t mask_bytes = 0;
  // Values that are the last of the weight, so that no load reads behind it; zeros follow.
  alignas(64) std::uint8_t tail[(kSparseColumns + 64) * 4];

  HWY_INLINE void Start(const Weight& w, std::int64_t row, std::int64_t k) {
    GoOn(w, row, values_before(w.layout, w.sparsity, row, k));
  }
  // From a value of the row on.
  HWY_INLINE void GoOn(const Weight& w, std::int64_t row, std::int64_t value) {
    first = w.layout.template as<const std::uint8_t>();
    mask = w.sparsity.mask.template as<const std::uint8_t>() + row * w.sparsity.mask.stride(0);
    mask_bytes = w.sparsity.mask.dim(1);
    at = value;
    end = end_of_values(w.layout, w.sparsity);
  }

  // Where the values of the columns' word lie: `from` and the first of them. Advances past them.
  HWY_INLINE const std::uint8_t* Next(std::uint32_t bits, std::int64_t* value) {
    return Skip(std::popcount(bits), value);
  }
  // The same, where their number is known.
  HWY_INLINE const std::uint8_t* Skip(std::int64_t count, std::int64_t* value) {
    const std::uint8_t* from = first;
    *value = at;
    if (HWY_UNLIKELY(at + kReach > end)) {
      from = tail;
      *value = Rest();
    }
    at += count;
    return from;
  }

 private:
  HWY_NOINLINE std::int64_t Rest() {
    std::memset(tail, 0, sizeof tail);
    if (at >= end) return 0;
    const std::int64_t begin = at / 2 * 2;  // a whole byte of int4
    const std::uint8_t* const from = Values::Address(first, begin);
    const std::uint8_t* const to =
        Values::Address(first, std::min(end, begin + kReach) + (kType == DType::int4));
    std::memcpy(tail, from, static_cast<std::size_t>(to - from));
    return at - begin;
  }
};

// Scale and zero of a row's group, in all lanes; of plain values neither is read.
struct SparseScale {
  F32Vec scale, zero;
};

template <DType kType>
HWY_INLINE F32Vec SparseVector(const std::uint8_t* from, std::int64_t value, std::uint32_t bits,
                               const SparseScale& s) {
  F32Vec v = SparseValues<kType>::Load(from, value);
  if constexpr (SparseValues<kType>::kScaled) v = hn::Mul(hn::Sub(v, s.zero), s.scale);
  return ExpandBits(v, bits);
}

HWY_INLINE SparseScale ScaleOf(const Weight& w, const ScaleGrid& grid, std::int64_t row, std::int64_t group) {
  const F32Tag d;
  return {hn::Set(d, scale_at(w.quantization, grid, row, group)),
          hn::Set(d, zero_at(w.quantization, grid, row, group))};
}

// The next `count` values of a row in f32; whole vectors are written.
template <DType kType>
HWY_INLINE void NextValues(SparseRow<kType>& row, std::int64_t count, const SparseScale& s,
                           float* HWY_RESTRICT to) {
  std::int64_t at;
  const std::uint8_t* const from = row.Skip(count, &at);
  for (std::int64_t i = 0; i < count; i += static_cast<std::int64_t>(kSparseLanes)) {
    F32Vec v = SparseValues<kType>::Load(from, at + i);
    if constexpr (SparseValues<kType>::kScaled) v = hn::Mul(hn::Sub(v, s.zero), s.scale);
    hn::StoreU(v, F32Tag(), to + i);
  }
}

// Calls f(std::integral_constant<DType, ...>()) for a dtype that values have.
template <class F>
HWY_INLINE void WithSparseDType(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f16:
      return f(std::integral_constant<DType, DType::f16>());
    case DType::bf16:
      return f(std::integral_constant<DType, DType::bf16>());
    case DType::i8:
      return f(std::integral_constant<DType, DType::i8>());
    case DType::int4:
      return f(std::integral_constant<DType, DType::int4>());
    case DType::fp8_e4m3:
      return f(std::integral_constant<DType, DType::fp8_e4m3>());
    case DType::fp8_e5m2:
      return f(std::integral_constant<DType, DType::fp8_e5m2>());
    default:
      return f(std::integral_constant<DType, DType::f32>());
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
