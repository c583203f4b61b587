// The elementwise functions of kf/ops/common.h on vectors of f32, for results that are kept as Out (see Exp).
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_ACTIVATION_INL_H_
#undef KF_SIMD_ACTIVATION_INL_H_
#else
#define KF_SIMD_ACTIVATION_INL_H_
#endif

#include "backends/cpu/simd/math-inl.h"
#include "core/gelu_logistic.h"
#include "hwy/highway.h"
#include "kf/ops/common.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x / (1 + e), e an exponential. For bf16 by AVX-512's reciprocal, which is within 2^-14 of itself.
template <class Out, class D, class V = hn::Vec<D>>
HWY_INLINE V OverOnePlus(D d, V x, V e) {
  const V divisor = hn::Add(hn::Set(d, 1.0f), e);
#if HWY_TARGET <= HWY_AVX3
  if constexpr (std::is_same_v<Out, Bf16>) return hn::Mul(x, hn::ApproximateReciprocal(divisor));
#endif
  return hn::Div(x, divisor);
}

// x / (1 + e^-x); a large negative x gives x / inf = -0.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V Silu(D d, V x) {
  return OverOnePlus<Out>(d, x, Exp<Out>(d, hn::Neg(x)));
}

// x/2 (1 + erf(x / sqrt 2)). Where erf rounds to -1 the result is a zero, and not x times erf's error.
//
// For bf16 the normal distribution is a logistic function, see core/gelu_logistic.h, whose P(s) is beyond the range as at its
// end.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V Gelu(D d, V x) {
  if constexpr (std::is_same_v<Out, Bf16>) {
    using namespace gelu_logistic;
    const V s = AtMost(d, kEnd * kEnd, hn::Mul(x, x));
    V p = hn::MulAdd(hn::Set(d, -kP6), s, hn::Set(d, -kP5));
    for (const float c : {kP4, kP3, kP2, kP1, kP0}) p = hn::MulAdd(p, s, hn::Set(d, -c));
    return OverOnePlus<Out>(d, x, Exp2<Out>(d, Clamp(d, -126.0f, 128.0f, hn::Mul(x, p))));
  }
  const V half = hn::Set(d, 0.5f);
  const V phi = hn::MulAdd(Erf(d, hn::Mul(x, hn::Set(d, 0.70710678118654752f))), half, half);
  return hn::Mul(x, hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -5.54f)), phi));
}

// x/2 (1 + tanh u) is x / (1 + e^-2u), which does not cancel for negative x.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V GeluTanh(D d, V x) {
  const V minus_two_u_over_x =
      hn::MulAdd(hn::Mul(x, x), hn::Set(d, -0.0713548162726f), hn::Set(d, -1.59576912160573f));
  return OverOnePlus<Out>(d, x, Exp<Out>(d, hn::Mul(x, minus_two_u_over_x)));
}

template <Activation kKind, class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V Activate(D d, V x) {
  if constexpr (kKind == Activation::silu) {
    return Silu<Out>(d, x);
  } else if constexpr (kKind == Activation::gelu) {
    return Gelu<Out>(d, x);
  } else if constexpr (kKind == Activation::gelu_tanh) {
    return GeluTanh<Out>(d, x);
  } else if constexpr (kKind == Activation::relu) {
    return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x);  // NaN passes
  } else {
    return x;
  }
}

// The same where the kind is known only when running; for epilogues that do more than this.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Activate(D d, Activation kind, V x) {
  switch (kind) {
    case Activation::silu:
      return Silu(d, x);
    case Activation::gelu:
      return Gelu(d, x);
    case Activation::gelu_tanh:
      return GeluTanh(d, x);
    case Activation::relu:
      return Activate<Activation::relu>(d, x);
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
