// Vector functions on f32: exp, erf, and reductions. Infinities and NaN come out as from the C library.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_MATH_INL_H_
#undef KF_SIMD_MATH_INL_H_
#else
#define KF_SIMD_MATH_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/pair-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x or `low`, whichever is larger; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtLeast(D d, float low, V x) {
  const V vlow = hn::Set(d, low);
#if !HWY_ARCH_X86 || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  return hn::IfThenElse(hn::Lt(x, vlow), vlow, x);  // NEON's and Highway's emulated max pick the number
#else
  return hn::Max(vlow, x);  // x86 returns the second operand where one is NaN
#endif
}

// x or `high`, whichever is smaller; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V AtMost(D d, float high, V x) {
  const V vhigh = hn::Set(d, high);
#if !HWY_ARCH_X86 || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  return hn::IfThenElse(hn::Gt(x, vhigh), vhigh, x);
#else
  return hn::Min(vhigh, x);
#endif
}

// x within [low, high]; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Clamp(D d, float low, float high, V x) {
  return AtLeast(d, low, AtMost(d, high, x));
}

// 2^f times two for |f| <= 1/2, for a result that is kept as Out: within 2^-16 of itself for f16, 2^-13 for bf16.
template <class Out, class D, class V = hn::Vec<D>>
HWY_INLINE V TwiceExp2(D d, V f) {
  if constexpr (std::is_same_v<Out, Bf16>) {  // in pairs: what one step waits for is what binds here
    const V low = hn::MulAdd(hn::Set(d, 1.3865658044815063f), f, hn::Set(d, 2.0f));
    const V high = hn::MulAdd(hn::Set(d, 0.11001808941364288f), f, hn::Set(d, 0.48442190885543823f));
    return hn::MulAdd(high, hn::Mul(f, f), low);
  }
  V p = hn::MulAdd(hn::Set(d, 0.0191656444221735f), f, hn::Set(d, 0.11181347817182541f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.4804820120334625f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.3862483501434326f));
  return hn::MulAdd(p, f, hn::Set(d, 2.0f));
}

// Added to k, leaves k + 126 in the low bits, which are the exponent bits of 2^(k-1).
inline constexpr float kExponentMagic = 12582912.0f + 126.0f;

// p 2^(k-1), `shifted` being k and the above.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleByExponent(D d, V p, V shifted) {
  const hn::RebindToSigned<D> di;
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// 2^x within [-126, 128], or NaN, for a result that is kept as Out, f16 or bf16.
template <class Out, class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const V magic = hn::Set(d, kExponentMagic);
  const V shifted = hn::Add(x, magic);
  return ScaleByExponent(d, TwiceExp2<Out>(d, hn::Sub(x, hn::Sub(shifted, magic))), shifted);
}

// e^x within [-87.5, 89], or NaN; see Exp.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V ExpWithin(D d, V x) {
  const V magic = hn::Set(d, kExponentMagic), log2_e = hn::Set(d, 1.44269504088896341f);
  const V shifted = hn::MulAdd(x, log2_e, magic);
  const V k = hn::Sub(shifted, magic);
  V p;
  if constexpr (std::is_same_v<Out, float>) {
    // ln 2 in two parts, the first short enough for exact products.
    V r = hn::NegMulAdd(k, hn::Set(d, 0.693359375f), x);
    r = hn::NegMulAdd(k, hn::Set(d, -2.12194440e-4f), r);
    p = hn::MulAdd(hn::Set(d, 0.0027642937f), r, hn::Set(d, 0.016737325f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.08333651f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.33333042f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.9999999f));
    p = hn::MulAdd(p, r, hn::Set(d, 2.0f));
    p = hn::MulAdd(p, r, hn::Set(d, 2.0f));
  } else {
    p = TwiceExp2<Out>(d, hn::MulSub(x, log2_e, k));
  }
  return ScaleByExponent(d, p, shifted);
}

// e^x, for a result that is kept as Out: within 1 ulp for f32 (1.5 without FMA), within 2^-16 of itself for f16 and 2^-13
// for bf16; e^0 is 1. Results below 2^-125.5 are flushed to zero.
//
// x = (k + f) ln 2 with |f| <= 1/2: the exponent bits of 2^(k-1) times the minimax polynomial of 2 e^r, r = f ln 2, overflow
// to infinity where they should, and 2^-127 has exponent bits zero: it is 0.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  return ExpWithin<Out>(d, Clamp(d, -87.5f, 89.0f, x));
}

// The same where x, but for rounding, is not above zero.
template <class Out = float, class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfNegative(D d, V x) {
  return ExpWithin<Out>(d, AtLeast(d, -87.5f, x));
}

// erf(x) with an absolute error below 4e-7: Eigen's rational approximation on [-4, 4].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Erf(D d, V x) {
  const V z = Clamp(d, -4.0f, 4.0f, x);
  const V t = hn::Mul(z, z);
  V p = hn::MulAdd(hn::Set(d, -2.72614225801306e-10f), t, hn::Set(d, 2.77068142495902e-08f));
  p = hn::MulAdd(p, t, hn::Set(d, -2.10102402082508e-06f));
  p = hn::MulAdd(p, t, hn::Set(d, -5.69250639462346e-05f));
  p = hn::MulAdd(p, t, hn::Set(d, -7.34990630326855e-04f));
  p = hn::MulAdd(p, t, hn::Set(d, -2.95459980854025e-03f));
  p = hn::MulAdd(p, t, hn::Set(d, -1.60960333262415e-02f));
  V q = hn::MulAdd(hn::Set(d, -1.45660718464996e-05f), t, hn::Set(d, -2.13374055278905e-04f));
  q = hn::MulAdd(q, t, hn::Set(d, -1.68282697438203e-03f));
  q = hn::MulAdd(q, t, hn::Set(d, -7.37332916720468e-03f));
  q = hn::MulAdd(q, t, hn::Set(d, -1.42647390514189e-02f));
  return hn::Div(hn::Mul(z, p), q);
}

// Sum of all lanes.
template <class D, class V = hn::Vec<D>>
HWY_INLINE float ReduceSum(D d, V v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

// Largest lane; NaN lanes are lost or win, as the hardware's max has it.
template <class D, class V = hn::Vec<D>>
HWY_INLINE float ReduceMax(D d, V v) {
  return hn::GetLane(hn::MaxOfLanes(d, v));
}

// Sum over [0, n) of what accumulate(acc, i, extent) adds to acc: with four accumulators in f32 over blocks
// of 2048 elements, over their lanes and the blocks in double, so that the error does not grow with n. With Step = Two it
// goes by pairs, the same ones as ForEachPair.
template <class Step = All, class F>
HWY_INLINE double BlockedSum(std::int64_t n, F&& accumulate) {
  constexpr std::int64_t kBlock = 2048;
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = HWY_MIN(n, begin + kBlock);
    F32Pair a = PairOf(hn::Zero(d), hn::Zero(d)), b = a;
    std::int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      if constexpr (std::is_same_v<Step, Two>) {
        a = accumulate(a, i, Two());
        b = accumulate(b, i + 2 * lanes, Two());
      } else {
        SetFirst(a, accumulate(FirstOf(a), i, All()));
        SetSecond(a, accumulate(SecondOf(a), i + lanes, All()));
        SetFirst(b, accumulate(FirstOf(b), i + 2 * lanes, All()));
        SetSecond(b, accumulate(SecondOf(b), i + 3 * lanes, All()));
      }
    }
    if constexpr (std::is_same_v<Step, Two>) {
      if (i + 2 * lanes <= end) {
        a = accumulate(a, i, Two());
        i += 2 * lanes;
      }
    }
    for (; i + lanes <= end; i += lanes) SetFirst(a, accumulate(FirstOf(a), i, All()));
    if (i < end) SetSecond(a, accumulate(SecondOf(a), i, First{static_cast<std::size_t>(end - i)}));
    // In double: the last additions are the largest ones, and would round as much as all before them.
    const hn::Repartition<double, F32Tag> d64;
    const hn::Half<F32Tag> half;
    const auto widen = [&](F32Vec v) HWY_ATTR {
      return hn::Add(hn::PromoteTo(d64, hn::LowerHalf(half, v)), hn::PromoteTo(d64, hn::UpperHalf(half, v)));
    };
    const auto sum = hn::Add(hn::Add(widen(FirstOf(a)), widen(SecondOf(a))),
                             hn::Add(widen(FirstOf(b)), widen(SecondOf(b))));
    total += hn::GetLane(hn::SumOfLanes(d64, sum));
  }
  return total;
}

// v with the lanes beyond the extent zero.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Within(D, V v, All) {
  return v;
}
HWY_INLINE F32Pair Within(F32Tag, F32Pair v, Two) { return v; }
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Within(D d, V v, First first) {
  return hn::IfThenElseZero(hn::FirstN(d, first.count), v);
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
