// Three passes: the largest element, the exponentials (kept in f32 and summed), their quotients. The second, which
// computes most, fetches the next row, so that all find theirs in a cache.

#include "backends/cpu/elementwise/softmax_row.h"

#include <cmath>
#include <limits>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/elementwise/softmax_row.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"
#include "backends/cpu/simd/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

// Largest scale * x. A NaN may or may not win; it shows in the sum of the exponentials.
template <class T>
float ScaledMax(const T* x, std::int64_t n, float scale) {
  const F32Tag d;
  const auto vscale = hn::Set(d, scale);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  F32Pair max{lowest, lowest};
  ForEachPair(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto v = LoadF32(d, x + i, extent);
    if constexpr (std::is_same_v<decltype(extent), Two>) {
      max.first = hn::Max(max.first, hn::Mul(v.first, vscale));
      max.second = hn::Max(max.second, hn::Mul(v.second, vscale));
    } else if constexpr (std::is_same_v<decltype(extent), All>) {
      max.first = hn::Max(max.first, hn::Mul(v, vscale));
    } else {
      max.second =
          hn::Max(max.second, hn::IfThenElse(hn::FirstN(d, extent.count), hn::Mul(v, vscale), lowest));
    }
  });
  return ReduceMax(d, hn::Max(max.first, max.second));
}

template <class T>
float Row(const T* x, const T* next, T* out, std::int64_t n, float scale, float* exponentials, bool stream) {
  const F32Tag d;
  const float max = ScaledMax(x, n, scale);
  // A row of -inf has no shift that leaves it finite: e^-inf is 0 under any other.
  const float shift = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
  const auto vscale = hn::Set(d, scale), vshift = hn::Set(d, shift);
  const auto exponential = [&](auto v) HWY_ATTR { return Exp<T>(d, hn::MulSub(v, vscale, vshift)); };
  const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
  const double sum = BlockedSum<Two>(n, [&](auto acc, std::int64_t i, auto extent) HWY_ATTR {
    const auto e = Within(d, Each(exponential, LoadF32(d, x + i, extent)), extent);
    StoreF32(d, e, exponentials + i, extent);
    hwy::Prefetch(next + i);
    return Each(add, acc, e);
  });
  const auto inverse = hn::Set(d, sum == 0 ? 0.0f : static_cast<float>(1 / sum));
  const auto quotient = [&](auto e) HWY_ATTR { return hn::Mul(e, inverse); };
  WithOut(stream, out, [&](auto to) HWY_ATTR {
    ForEachPair(n, [&](std::int64_t i, auto extent) HWY_ATTR {
      to.Put(d, Each(quotient, LoadF32(d, exponentials + i, extent)), i, extent);
    });
  });
  if (stream) hwy::FlushStream();
  return static_cast<float>(shift + std::log(sum));
}

float SoftmaxRow(DType dtype, const void* x, const void* next, void* out, std::int64_t n, float scale,
                 float* exponentials, bool stream) {
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    return Row(static_cast<const T*>(x), static_cast<const T*>(next), static_cast<T*>(out), n, scale,
               exponentials, stream);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(SoftmaxRow);

float cpu::softmax_row(DType dtype, const void* x, const void* next, void* out, std::int64_t n, float scale,
                       float* exponentials, bool stream) {
  return HWY_DYNAMIC_DISPATCH(SoftmaxRow)(dtype, x, next, out, n, scale, exponentials, stream);
}

}  // namespace kf
#endif
