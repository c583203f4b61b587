// Elements of any activation dtype as vectors of f32: loads widen, stores round to nearest even. Whole
// vectors, or the first elements of one without touching what lies beyond them.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_LOAD_STORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_LOAD_STORE_INL_H_
#undef KF_SIMD_LOAD_STORE_INL_H_
#else
#define KF_SIMD_LOAD_STORE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/half.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The widest vector of f32; kernels count in its lanes.
using F32Tag = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32Tag>;

// How much of a vector a load or store touches.
struct All {};
struct First {
  std::size_t count;  // less than a vector
};

// Calls f(i, All()) for every whole vector of [0, n) and f(i, First{rest}) for what remains.
template <class F>
HWY_INLINE void ForEachVector(std::int64_t n, F&& f) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, All());
  if (i < n) f(i, First{static_cast<std::size_t>(n - i)});
}

// f16 <-> f32 in hardware on AVX2 and later and on arm64; elsewhere highway's emulation knows no infinity and
// no NaN.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64
template <class D>
HWY_INLINE hn::Vec<D> F16ToF32(D d, hn::Vec<hn::Rebind<std::uint16_t, D>> bits) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::BitCast(d16, bits));
}
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, D>> F32ToF16(D, hn::Vec<D> v) {
  const hn::Rebind<hwy::float16_t, D> d16;
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::BitCast(du16, hn::DemoteTo(d16, v));
}
#else
// The same steps as core/half.h.
template <class D>
HWY_INLINE hn::Vec<D> F16ToF32(D d, hn::Vec<hn::Rebind<std::uint16_t, D>> bits) {
  const hn::RebindToUnsigned<D> du;
  const auto wide = hn::PromoteTo(du, bits);
  const auto magnitude = hn::And(wide, hn::Set(du, 0x7fffu));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(wide, magnitude));
  const hn::RebindToSigned<D> di;
  const auto denormal = hn::Mul(hn::ConvertTo(d, hn::BitCast(di, magnitude)), hn::Set(d, 0x1p-24f));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(du, 112u << 23));
  const auto special = hn::Or(shifted, hn::Set(du, 0x7f800000u));
  // Signed comparisons: SSE2 has no unsigned ones, and magnitudes are small.
  const auto exponent_bits = hn::BitCast(di, magnitude);
  const auto is_denormal = hn::Lt(exponent_bits, hn::Set(di, 0x400));
  const auto is_special = hn::Gt(exponent_bits, hn::Set(di, 0x7bff));
  auto result = hn::IfThenElse(hn::RebindMask(du, is_special), special, normal);
  result = hn::IfThenElse(hn::RebindMask(du, is_denormal), hn::BitCast(du, denormal), result);
  return hn::BitCast(d, hn::Or(result, sign));
}
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, D>> F32ToF16(D d, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(du, v);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto sign = hn::ShiftRight<16>(hn::Xor(bits, magnitude));
  const auto order = hn::BitCast(di, magnitude);
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  const auto rounded =
      hn::Add(hn::Add(hn::Sub(magnitude, hn::Set(du, 112u << 23)), hn::Set(du, 0xfffu)), odd);
  auto half = hn::ShiftRight<13>(rounded);
  const auto denormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f))),
                                hn::Set(du, 0x3f000000u));
  half = hn::IfThenElse(hn::RebindMask(du, hn::Lt(order, hn::Set(di, 0x38800000))), denormal, half);
  half =
      hn::IfThenElse(hn::RebindMask(du, hn::Gt(order, hn::Set(di, 0x477fffff))), hn::Set(du, 0x7c00u), half);
  const auto nan = hn::Or(hn::Set(du, 0x7e00u), hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3ffu)));
  half = hn::IfThenElse(hn::RebindMask(du, hn::Gt(order, hn::Set(di, 0x7f800000))), nan, half);
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::DemoteTo(du16, hn::BitCast(di, hn::Or(half, sign)));
}
#endif

// A bf16 result of operands that are all bf16. A NaN among such results has no bits below those that bf16 keeps, since no
// operand has and neither has the one that hardware makes: rounding leaves it a NaN, and it needs no care.
struct Bf16OfBf16 : Bf16 {};
// Rounded by the processor's own conversion, see bf16_conversion.h; results below 2^-126 become zero.
struct Bf16Converted : Bf16 {};
template <class T>
inline constexpr bool kIsBf16 = std::is_base_of_v<Bf16, T>;
// The type to store what is made of operands of type T alone.
template <class T>
using ResultOf = std::conditional_t<std::is_same_v<T, Bf16>, Bf16OfBf16, T>;

// Rounded to T, which is the upper half of each lane; the lower half is arbitrary. Of bf16 NaN becomes the NaN of all ones.
template <class T, class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> RoundToBf16(D, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fffu)), odd);
  if constexpr (std::is_same_v<T, Bf16OfBf16>) return rounded;
  // By integers: what a compare of floats says of NaN differs between Highway's targets.
  const hn::RebindToSigned<D> di;
  const auto magnitude = hn::BitCast(di, hn::And(bits, hn::Set(du, 0x7fffffffu)));
  const auto is_nan = hn::VecFromMask(di, hn::Gt(magnitude, hn::Set(di, 0x7f800000)));
  return hn::Or(rounded, hn::BitCast(du, is_nan));
}

template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, hn::Vec<hn::Rebind<std::uint16_t, D>> bits, F16) {
  return F16ToF32(d, bits);
}
template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, hn::Vec<hn::Rebind<std::uint16_t, D>> bits, Bf16) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}
template <class D>
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, D>> Narrow(D d, hn::Vec<D> v, F16) {
  return F32ToF16(d, v);
}
#if HWY_TARGET <= HWY_AVX3
// In assembly: Highway's target has no AVX512-BF16, and with it neither have the compiler's intrinsics.
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, F32Tag>> Narrow(F32Tag, F32Vec v, Bf16Converted) {
  __m256i bits;
  asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v.raw));
  return hn::Vec<hn::Rebind<std::uint16_t, F32Tag>>{bits};
}
#endif
template <class D, class T, std::enable_if_t<kIsBf16<T>>* = nullptr>
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, D>> Narrow(D d, hn::Vec<D> v, T) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<std::uint16_t, D> du16;
  return hn::DemoteTo(du16, hn::BitCast(di, hn::ShiftRight<16>(RoundToBf16<T>(d, v))));
}

// --- loads

template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const float* p, All = {}) {
  return hn::LoadU(d, p);
}

template <class D, class T>
HWY_INLINE hn::Vec<D> LoadF32(D d, const T* p, All = {}) {
  const hn::Rebind<std::uint16_t, D> du16;
  return Widen(d, hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(p)), T{});
}

// Lanes beyond the first are zero.
template <class D, class T>
HWY_INLINE hn::Vec<D> LoadF32(D d, const T* p, First first) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  if constexpr (sizeof(T) == sizeof(float)) return hn::MaskedLoad(hn::FirstN(d, first.count), d, p);
#endif
  HWY_ALIGN T buffer[hn::MaxLanes(d)] = {};
  std::memcpy(buffer, p, first.count * sizeof(T));
  return LoadF32(d, buffer);
}

// --- stores

template <class D>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, float* p, All = {}) {
  hn::StoreU(v, d, p);
}

template <class D, class T>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, T* p, All = {}) {
  const hn::Rebind<std::uint16_t, D> du16;
  hn::StoreU(Narrow(d, v, T{}), du16, reinterpret_cast<std::uint16_t*>(p));
}

template <class D, class T>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, T* p, First first) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  if constexpr (sizeof(T) == sizeof(float)) return hn::BlendedStore(v, hn::FirstN(d, first.count), d, p);
#endif
  HWY_ALIGN T buffer[hn::MaxLanes(d)];
  StoreF32(d, v, buffer);
  std::memcpy(p, buffer, first.count * sizeof(T));
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
