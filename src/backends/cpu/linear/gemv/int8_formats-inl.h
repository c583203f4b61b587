// How weights are read that meet x in 8 bits (InputQuantization): as formats-inl.h says, but products are summed in
// int32, and what Close needs is an integer a lane: -kOffset times the sum of the lane's codes of x.
//
// Codes of a weight are multiplied as unsigned bytes where the instructions want them so: u = q + kOffset, and
//   sum q c = sum u c - kOffset sum c,
// the last of which the sums start from.
#if defined(KF_CPU_LINEAR_GEMV_INT8_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMV_INT8_FORMATS_INL_H_
#undef KF_CPU_LINEAR_GEMV_INT8_FORMATS_INL_H_
#else
#define KF_CPU_LINEAR_GEMV_INT8_FORMATS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/gemv/formats-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using UnsignedBytes = hn::Repartition<std::uint8_t, F32Tag>;
using SignedBytes = hn::Repartition<std::int8_t, F32Tag>;
inline constexpr std::size_t kVectorBytes = 4 * kLanes;

// Sums of products of bytes, four a lane; of vectors of 128 bits in any of its lanes.
template <class Weights>
HWY_INLINE IntVec WidenAndDot(Weights w, hn::Vec<SignedBytes> x, IntVec sum) {
  const hn::Repartition<std::int16_t, F32Tag> d16;
  const hn::Half<hn::DFromV<Weights>> half_w;
  const hn::Half<SignedBytes> half_x;
  IntVec second = hn::Zero(IntTag());
  sum = hn::ReorderWidenMulAccumulate(IntTag(), hn::PromoteTo(d16, hn::LowerHalf(half_w, w)),
                                      hn::PromoteTo(d16, hn::LowerHalf(half_x, x)), sum, second);
  sum = hn::ReorderWidenMulAccumulate(IntTag(), hn::PromoteTo(d16, hn::UpperHalf(half_w, w)),
                                      hn::PromoteTo(d16, hn::UpperHalf(half_x, x)), sum, second);
  return hn::Add(sum, second);
}

// u up to 128 where there is no VNNI: sums of two products are held in 16 bits.
HWY_INLINE IntVec DotUnsigned(hn::Vec<UnsignedBytes> u, hn::Vec<SignedBytes> x, IntVec sum) {
#if HWY_TARGET <= HWY_AVX3_DL
  // The intrinsic needs -mavx512vnni, which Highway 1.0.3 leaves out of this target though it asks the processor for it.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(u.raw), "v"(x.raw));
  return sum;
#elif HWY_TARGET == HWY_AVX2
  const __m256i pairs = _mm256_maddubs_epi16(u.raw, x.raw);
  return hn::Add(sum, IntVec{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
#else
  return WidenAndDot(u, x, sum);
#endif
}

struct IntProducts {
  static constexpr std::size_t kParts = 1;
  static constexpr bool kScaled = true;
  static constexpr bool kFetchesAll = true;
  static constexpr bool kLoadsPart = false;
  using Sum = IntVec;
  using Input = hn::Vec<SignedBytes>;
  static HWY_INLINE Input LoadInput(const float* x) {
    return hn::Load(SignedBytes(), reinterpret_cast<const std::int8_t*>(x));
  }
  static HWY_INLINE IntVec LoadOffset(const float* x) {
    return hn::Load(IntTag(), reinterpret_cast<const std::int32_t*>(x));
  }

  F32Vec scale, min;  // min: to be multiplied with the offset, where kHasMin
  template <bool kHasMin>
  HWY_INLINE F32Vec CloseSum(IntVec sum, const float* offset, F32Vec acc) const {
    const F32Tag d;
    if constexpr (kHasMin) acc = hn::MulAdd(min, hn::ConvertTo(d, LoadOffset(offset)), acc);
    return hn::MulAdd(scale, hn::ConvertTo(d, sum), acc);
  }
};

// Weights of a byte each, signed.
struct SignedProducts : IntProducts {
  static constexpr int kOffset = 128;
#if HWY_TARGET <= HWY_AVX3_DL
  static HWY_INLINE IntVec Start(const float* offset) { return LoadOffset(offset); }
  static HWY_INLINE IntVec MulAdd(hn::Vec<SignedBytes> w, Input x, IntVec sum) {
    const UnsignedBytes d;
    return DotUnsigned(hn::Xor(hn::BitCast(d, w), hn::Set(d, 0x80)), x, sum);
  }
#else
  static HWY_INLINE IntVec Start(const float*) { return hn::Zero(IntTag()); }
  static HWY_INLINE IntVec MulAdd(hn::Vec<SignedBytes> w, Input x, IntVec sum) {
#if HWY_TARGET == HWY_AVX2
    const IntVec magnitude{_mm256_abs_epi8(w.raw)};  // of -128 it is 128 as an unsigned byte
    return DotUnsigned(hn::BitCast(UnsignedBytes(), magnitude),
                       hn::Vec<SignedBytes>{_mm256_sign_epi8(x.raw, w.raw)}, sum);
#else
    return WidenAndDot(w, x, sum);
#endif
  }
#endif
};

// Nibbles, a vector of bytes: first the low ones, then the high. They are never negative: q + 8.
struct NibbleProducts : IntProducts {
  static constexpr int kOffset = 8;
  static constexpr std::size_t kVectors = 2;
  static constexpr std::size_t kStepElems = kVectors * kVectorBytes;
  static constexpr std::size_t kInputFloats = (kVectors + 1) * kLanes;

  hn::Vec<UnsignedBytes> low, high;
  static HWY_INLINE IntVec Start(const float* offset) { return LoadOffset(offset); }
  static HWY_INLINE IntVec MulAdd(hn::Vec<UnsignedBytes> u, Input x, IntVec sum) {
    return DotUnsigned(u, x, sum);
  }
  HWY_INLINE void SetNibbles(hn::Vec<UnsignedBytes> both) {
    const UnsignedBytes d;
    const hn::Repartition<std::uint16_t, UnsignedBytes> wide;
    low = hn::And(both, hn::Set(d, 15));
    high = hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(wide, both))), hn::Set(d, 15));
  }
  HWY_INLINE hn::Vec<UnsignedBytes> Get(std::size_t v) const { return v == 0 ? low : high; }
};

// Either of those with scales beside the weight.
template <class Products, bool kHasMin>
struct ScaledBeside : Products {
  HWY_INLINE void SetScales(F32Vec of_q, F32Vec zero) {
    this->scale = of_q;
    if constexpr (kHasMin)
      this->min = hn::Mul(hn::Mul(of_q, zero), hn::Set(F32Tag(), 1.0f / Products::kOffset));
  }
  HWY_INLINE void LoadScales() {}
  HWY_INLINE F32Vec Close(IntVec sum, const float* offset, F32Vec acc) const {
    return this->template CloseSum<kHasMin>(sum, offset, acc);
  }
};

// i8, in steps of kElems.
template <std::size_t kElems, bool kHasMin>
struct ByteInt8 : ScaledBeside<SignedProducts, kHasMin> {
  static constexpr std::size_t kElemsPerByte = 1;
  static constexpr std::size_t kStepElems = kElems;
  static constexpr std::size_t kVectors = kElems / kVectorBytes;
  static constexpr std::size_t kStepBytes = kElems;
  static constexpr std::size_t kInputFloats = (kVectors + 1) * kLanes;

  const std::int8_t* codes;
  HWY_INLINE void Load(const std::uint8_t* p) { codes = reinterpret_cast<const std::int8_t*>(p); }
  HWY_INLINE hn::Vec<SignedBytes> Get(std::size_t v) const {
    return hn::LoadU(SignedBytes(), codes + v * kVectorBytes);
  }
};

// q8_0: as many blocks as a vector has, or one.
struct Q8Int8 : SignedProducts {
  static constexpr std::size_t kStepElems = kVectorBytes < 32 ? 32 : kVectorBytes;
  static constexpr std::size_t kVectors = kStepElems / kVectorBytes;
  static constexpr std::size_t kStepBytes = kStepElems / 32 * 34;
  static constexpr std::size_t kInputFloats = (kVectors + 1) * kLanes;

  const std::uint8_t* blocks;
  HWY_INLINE void Load(const std::uint8_t* p) { blocks = p; }
  HWY_INLINE hn::Vec<SignedBytes> Get(std::size_t v) const {
    const auto* const codes = reinterpret_cast<const std::int8_t*>(blocks) + 2;
    if constexpr (kVectorBytes <= 32) {
      return hn::LoadU(SignedBytes(), codes + v * kVectorBytes);
    } else {
      static_assert(kVectorBytes <= 64);
      const hn::Half<SignedBytes> half;
      return hn::Combine(SignedBytes(), hn::LoadU(half, codes + 34), hn::LoadU(half, codes));
    }
  }
  HWY_INLINE void LoadScales() {
    const F32Tag d;
    if constexpr (kVectorBytes <= 32) {
      scale = LoadHalf(blocks);
    } else {
      const hn::Half<HalfTag> half;
      std::uint16_t first, second;
      std::memcpy(&first, blocks, sizeof first);
      std::memcpy(&second, blocks + 34, sizeof second);
      scale = F16ToF32(d, hn::Combine(HalfTag(), hn::Set(half, second), hn::Set(half, first)));
    }
  }
  HWY_INLINE F32Vec Close(IntVec sum, const float* offset, F32Vec acc) const {
    return CloseSum<false>(sum, offset, acc);
  }
};

// q4_0 and q4_1, whose minimum counts for all of the sum of x: d q + m = d (q - 8) + (m + 8 d).
template <bool kHasMin>
struct BlocksInt8 : NibbleProducts {
  using F32Format = NibbleFormat<kHasMin>;
  static constexpr std::size_t kStepBytes = F32Format::kStepBytes;

  F32Format format;
  HWY_INLINE void Load(const std::uint8_t* p) {
    format.blocks = p;
    SetNibbles(
        hn::BitCast(UnsignedBytes(), LoadNibbles<F32Format::kBlockBytes>(WordTag(), p + F32Format::kHeader)));
  }
  HWY_INLINE void LoadScales() {
    const F32Tag d;
    format.LoadScales();
    scale = format.scale;
    if constexpr (kHasMin)
      min = hn::Mul(hn::MulAdd(hn::Set(d, 8.0f), scale, format.min), hn::Set(d, -1.0f / kOffset));
  }
  HWY_INLINE F32Vec Close(IntVec sum, const float* offset, F32Vec acc) const {
    return CloseSum<kHasMin>(sum, offset, acc);
  }
};

template <bool kHasMin>
struct Int4Int8 : ScaledBeside<NibbleProducts, kHasMin> {
  static constexpr std::size_t kElemsPerByte = 2;
  static constexpr std::size_t kStepBytes = NibbleProducts::kStepElems / kElemsPerByte;

  HWY_INLINE void Load(const std::uint8_t* p) {
    const UnsignedBytes d;
    this->SetNibbles(hn::Xor(hn::LoadU(d, p), hn::Set(d, 0x88)));
  }
};

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
