// What the kernels of few and of many tokens share of weights with scales beside them.
#if defined(KF_CPU_LINEAR_QUANTIZED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_QUANTIZED_INL_H_
#undef KF_CPU_LINEAR_QUANTIZED_INL_H_
#else
#define KF_CPU_LINEAR_QUANTIZED_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kf/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// With these bits flipped, a word's eight nibbles are q + 8 instead of q, and zeros count as 8 more.
inline constexpr std::uint32_t kInt4Signs = 0x88888888u;

// An fp8 code in each lane (of 16 or 32 bits) as an f16, to be multiplied by kFp8Unit in f32. f16 holds the denormals
// of both, and hardware widens them as fast as other values.
template <DType kType>
inline constexpr float kFp8Unit = kType == DType::fp8_e4m3 ? 256.0f : 1.0f;  // the biases differ by 8

template <DType kType, class D>
HWY_INLINE hn::Vec<D> Fp8ToF16(D d, hn::Vec<D> code) {
  using T = hn::TFromD<D>;
  if constexpr (kType == DType::fp8_e5m2) return hn::ShiftLeft<8>(code);
  const auto magnitude = hn::And(code, hn::Set(d, T{0x7f}));
  const auto half = hn::Or(hn::ShiftLeft<8>(hn::Xor(code, magnitude)), hn::ShiftLeft<7>(magnitude));
  const auto is_nan = hn::VecFromMask(d, hn::Eq(magnitude, hn::Set(d, T{0x7f})));
  return hn::Or(half, hn::And(is_nan, hn::Set(d, T{0x7e00})));
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
