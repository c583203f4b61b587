#include "backends/cpu/sampling/argmax_row.h"

#include <limits>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/sampling/argmax_row.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

using I32Tag = hn::RebindToSigned<F32Tag>;
using I32Vec = hn::Vec<I32Tag>;

// Integers in the order of the floats: equal for both zeros, the largest for every NaN.
HWY_INLINE I32Vec OrderOf(F32Vec v) {
  const F32Tag d;
  const I32Tag di;
  const auto bits = hn::BitCast(di, hn::Add(v, hn::Zero(d)));  // -0 + 0 is +0
  const auto order = hn::Xor(bits, hn::And(hn::BroadcastSignBit(bits), hn::Set(di, 0x7fffffff)));
  const auto is_number = hn::RebindMask(di, hn::Eq(v, v));
  return hn::IfThenElse(is_number, order, hn::Set(di, std::numeric_limits<std::int32_t>::max()));
}

// Each lane keeps the first of its largest; the lanes are compared at the end.
template <class T>
cpu::Largest ArgmaxTyped(const T* x, std::int64_t n) {
  const F32Tag d;
  const I32Tag di;
  const auto lanes = static_cast<std::int32_t>(hn::Lanes(d));
  auto best = hn::Set(di, std::numeric_limits<std::int32_t>::min());
  auto best_at = hn::Iota(di, 0), at = best_at;
  const auto step = hn::Set(di, lanes);
  const auto keep = [&](I32Vec order) HWY_ATTR {
    const auto better = hn::Gt(order, best);
    best = hn::IfThenElse(better, order, best);
    best_at = hn::IfThenElse(better, at, best_at);
    at = hn::Add(at, step);
  };
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto order = OrderOf(LoadF32(d, x + i, extent));
    if constexpr (std::is_same_v<decltype(extent), First>) {
      keep(hn::IfThenElse(hn::FirstN(di, extent.count), order,
                          hn::Set(di, std::numeric_limits<std::int32_t>::min())));
    } else {
      keep(order);
    }
  });
  HWY_ALIGN std::int32_t orders[hn::MaxLanes(di)], indices[hn::MaxLanes(di)];
  hn::Store(best, di, orders);
  hn::Store(best_at, di, indices);
  std::int32_t winner = 0;
  for (std::int32_t lane = 1; lane < lanes; ++lane)
    if (orders[lane] > orders[winner] || (orders[lane] == orders[winner] && indices[lane] < indices[winner]))
      winner = lane;
  return {to_f32(x[indices[winner]]), indices[winner]};
}

cpu::Largest ArgmaxRow(DType dtype, const void* x, std::int64_t n) {
  return with_activation_type(
      dtype, [&]<class T>(std::type_identity<T>) { return ArgmaxTyped(static_cast<const T*>(x), n); });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(ArgmaxRow);

cpu::Largest cpu::argmax_row(DType dtype, const void* x, std::int64_t n) {
  return HWY_DYNAMIC_DISPATCH(ArgmaxRow)(dtype, x, n);
}

}  // namespace kf
#endif
