// Vector functions on f32: exp, erf, logistic, and reductions. Infinities and NaN come out as from the C library.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_MATH_INL_H_
#undef KF_SIMD_MATH_INL_H_
#else
#define KF_SIMD_MATH_INL_H_
#endif

#include <cstdint>

#include "backends/cpu/simd/load_store-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// e^x to about an ulp (Cephes' expf); results below 2^-126 are flushed to zero.
//
// x = k ln 2 + r with |r| <= ln 2 / 2: adding 1.5 * 2^23 leaves the integer k in the low bits. e^r is Cephes'
// expf polynomial; 2^k is added to its exponent as an integer, which also overflows to infinity where it
// should.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), magic);
  const V k = hn::Sub(shifted, magic);
  // ln 2 in two parts, the first short enough for exact products.
  V r = hn::NegMulAdd(k, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(k, hn::Set(d, -2.12194440e-4f), r);

  V p = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  const V e = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));

  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  const V scaled = hn::BitCast(d, hn::Add(hn::BitCast(di, e), exponent));
  // Beyond these k leaves the exponent's range; a comparison with NaN is false, so that NaN passes.
  const V overflown =
      hn::IfThenElse(hn::Gt(x, hn::Set(d, 88.72284f)), hn::BitCast(d, hn::Set(di, 0x7f800000)), scaled);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.33655f)), overflown);
}

// 1 / (1 + e^-x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Logistic(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// erf(x) with an absolute error below 4e-7: Eigen's rational approximation on [-4, 4].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Erf(D d, V x) {
  // The operand order lets NaN through x86's min and max.
  const V z = hn::Max(hn::Set(d, -4.0f), hn::Min(hn::Set(d, 4.0f), x));
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
// of 2048 elements, over the blocks in double, so that the error does not grow with n.
template <class F>
HWY_INLINE double BlockedSum(std::int64_t n, F&& accumulate) {
  constexpr std::int64_t kBlock = 2048;
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  double total = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = HWY_MIN(n, begin + kBlock);
    F32Vec a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
    std::int64_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      a0 = accumulate(a0, i, All());
      a1 = accumulate(a1, i + lanes, All());
      a2 = accumulate(a2, i + 2 * lanes, All());
      a3 = accumulate(a3, i + 3 * lanes, All());
    }
    for (; i + lanes <= end; i += lanes) a0 = accumulate(a0, i, All());
    if (i < end) a1 = accumulate(a1, i, First{static_cast<std::size_t>(end - i)});
    total += ReduceSum(d, hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)));
  }
  return total;
}

// v with the lanes beyond the extent zero.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Within(D, V v, All) {
  return v;
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Within(D d, V v, First first) {
  return hn::IfThenElseZero(hn::FirstN(d, first.count), v);
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
