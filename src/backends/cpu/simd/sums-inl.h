// Sums of the lanes of several vectors.
#if defined(KF_CPU_SIMD_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_SIMD_SUMS_INL_H_
#undef KF_CPU_SIMD_SUMS_INL_H_
#else
#define KF_CPU_SIMD_SUMS_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sum of a vector's blocks of four lanes.
template <class D>
HWY_INLINE void StoreBlockSum(D d, hn::Vec<D> v, float* to) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(v, d, to);
  } else {
    const hn::Half<D> half;
    StoreBlockSum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  }
}

// The sums of the lanes of four vectors at a time, which takes a third of the shuffles that they take one by one.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreLaneSums(D d, V a, V b, V c, V e, float* to) {
  const hn::Repartition<double, D> pairs;
  const auto as_pairs = [&](V v) HWY_ATTR { return hn::BitCast(pairs, v); };
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)),
          ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  StoreBlockSum(d,
                hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, as_pairs(ab), as_pairs(ce))),
                        hn::BitCast(d, hn::InterleaveUpper(pairs, as_pairs(ab), as_pairs(ce)))),
                to);
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
