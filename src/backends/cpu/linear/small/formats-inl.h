// How each weight format is read. A row is read in steps; a step gives kVectors vectors of weights, to be
// multiplied with as many vectors of x. Where kScaled, the sum of a step's products is then scaled (by what
// LoadScales reads, once for all tokens) and added to the row's (Close).
//
//   kStepBytes     of a row
//   kInputFloats   of x for a step: its kVectors vectors, then what Close needs
#if defined(KF_CPU_LINEAR_SMALL_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_SMALL_FORMATS_INL_H_
#undef KF_CPU_LINEAR_SMALL_FORMATS_INL_H_
#else
#define KF_CPU_LINEAR_SMALL_FORMATS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backends/cpu/simd/load_store-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F16ToF32;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::F32Vec;
using kf::HWY_NAMESPACE::LoadF32;

using WordTag = hn::RebindToUnsigned<F32Tag>;
using IntTag = hn::RebindToSigned<F32Tag>;
using HalfTag = hn::Rebind<std::uint16_t, F32Tag>;  // as many 16-bit lanes
inline constexpr std::size_t kLanes = hn::MaxLanes(F32Tag());

// Rows of f32, f16 or bf16.
template <class T>
struct PlainFormat {
  static constexpr std::size_t kVectors = 1;
  static constexpr std::size_t kStepBytes = kLanes * sizeof(T);
  static constexpr std::size_t kInputFloats = kLanes;
  static constexpr bool kScaled = false;

  const T* weights;
  HWY_INLINE void Load(const std::uint8_t* p) { weights = reinterpret_cast<const T*>(p); }
  HWY_INLINE F32Vec Get(std::size_t) const { return LoadF32(F32Tag(), weights); }
};

// q8_0: a step is a block. Quants are scaled before they meet x: a sum of unscaled products would overflow
// from x = 3e36 on.
struct Q8Format {
  static constexpr std::size_t kVectors = 32 / kLanes;
  static constexpr std::size_t kStepBytes = 34;
  static constexpr std::size_t kInputFloats = 32;
  static constexpr bool kScaled = false;

  const std::int8_t* quants;
  F32Vec scale;
  HWY_INLINE void Load(const std::uint8_t* p) {
    std::uint16_t d;
    std::memcpy(&d, p, sizeof d);
    scale = F16ToF32(F32Tag(), hn::Set(HalfTag(), d));
    quants = reinterpret_cast<const std::int8_t*>(p + 2);
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const auto bytes = hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), quants + v * kLanes);
    return hn::Mul(scale, hn::ConvertTo(F32Tag(), hn::PromoteTo(IntTag(), bytes)));
  }
};

// The nibbles of neighbouring blocks, four words a block, as many blocks as fill a vector.
template <std::size_t kBlockBytes, class D>
HWY_INLINE hn::Vec<D> LoadNibbles(D d, const std::uint8_t* p) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(p));
  } else {
    const hn::Half<D> half;
    const std::uint8_t* upper = p + kBlockBytes * (hn::MaxLanes(half) / 4);
    return hn::Combine(d, LoadNibbles<kBlockBytes>(half, upper), LoadNibbles<kBlockBytes>(half, p));
  }
}

// The first field of neighbouring blocks, repeated for as many lanes as a block has of the vector: four
// 16-bit scales, or two pairs of scale and minimum.
template <std::size_t kBlockBytes, class D>
HWY_INLINE hn::Vec<D> SpreadField(D d, const std::uint8_t* p) {
  using T = hn::TFromD<D>;
  constexpr std::size_t kBlockLanes = 8 / sizeof(T);
  if constexpr (hn::MaxLanes(D()) == kBlockLanes) {
    T field;
    std::memcpy(&field, p, sizeof field);
    return hn::Set(d, field);
  } else {
    const hn::Half<D> half;
    const std::uint8_t* upper = p + kBlockBytes * (hn::MaxLanes(half) / kBlockLanes);
    return hn::Combine(d, SpreadField<kBlockBytes>(half, upper), SpreadField<kBlockBytes>(half, p));
  }
}

// q4_0 and q4_1. A lane holds a word, eight nibbles of one block. A nibble is not shifted down: masked in
// place it is q * 2^(4 n), which converts to f32 exactly, and x comes multiplied by 2^(-4 n). A step is eight
// vectors, one for each nibble of the word; a ninth of x holds each lane's sum of x, by which the blocks'
// minimum counts:
//   sum (d q + m) x = d sum(q x) + m sum(x);   q4_0 has m = -8 d.
template <bool kHasMin>
struct NibbleFormat {
  static constexpr std::size_t kHeader = kHasMin ? 4 : 2;
  static constexpr std::size_t kBlockBytes = kHeader + 16;
  static constexpr std::size_t kVectors = 8;
  static constexpr std::size_t kStepElems = kVectors * kLanes;
  static constexpr std::size_t kStepBytes = kLanes / 4 * kBlockBytes;
  static constexpr std::size_t kInputFloats = (kVectors + 1) * kLanes;
  static constexpr bool kScaled = true;

  const std::uint8_t* blocks;
  hn::Vec<WordTag> low, high;
  F32Vec scale, min;
  HWY_INLINE void Load(const std::uint8_t* p) {
    blocks = p;
    low = LoadNibbles<kBlockBytes>(WordTag(), p + kHeader);
    high = hn::ShiftRight<16>(low);
  }
  HWY_INLINE void LoadScales() {
    const F32Tag d;
    if constexpr (kHasMin) {
      // Scale and minimum lie side by side and are converted together.
      const hn::Repartition<std::uint32_t, HalfTag> pairs;
      const F32Vec both = F16ToF32(d, hn::BitCast(HalfTag(), SpreadField<kBlockBytes>(pairs, blocks)));
      scale = hn::DupEven(both);
      min = hn::DupOdd(both);
    } else {
      scale = F16ToF32(d, SpreadField<kBlockBytes>(HalfTag(), blocks));
      min = hn::Mul(hn::Set(d, -8.0f), scale);
    }
  }
  // Shifting by at most 12 bits keeps x * 2^(-4 n) exact down to 2^-114.
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const auto mask = hn::Set(WordTag(), 0xFu << (4 * (v % 4)));
    return hn::ConvertTo(F32Tag(), hn::BitCast(IntTag(), hn::And(v < 4 ? low : high, mask)));
  }
  HWY_INLINE F32Vec Close(F32Vec sum, const float* x_sum, F32Vec acc) const {
    return hn::MulAdd(min, hn::Load(F32Tag(), x_sum), hn::MulAdd(scale, sum, acc));
  }
};

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
