// Three passes: the largest element, the exponentials (kept in f32 and summed), their quotients. All but the
// first find the row in a cache.

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
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto vscale = hn::Set(d, scale);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto m0 = lowest, m1 = lowest;
  std::int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    m0 = hn::Max(m0, hn::Mul(LoadF32(d, x + i), vscale));
    m1 = hn::Max(m1, hn::Mul(LoadF32(d, x + i + lanes), vscale));
  }
  for (; i + lanes <= n; i += lanes) m0 = hn::Max(m0, hn::Mul(LoadF32(d, x + i), vscale));
  if (i < n) {
    const First rest{static_cast<std::size_t>(n - i)};
    const auto v = hn::Mul(LoadF32(d, x + i, rest), vscale);
    m1 = hn::Max(m1, hn::IfThenElse(hn::FirstN(d, rest.count), v, lowest));
  }
  return ReduceMax(d, hn::Max(m0, m1));
}

template <class T>
float Row(const T* x, T* out, std::int64_t n, float scale, float* exponentials, bool stream) {
  const F32Tag d;
  const float max = ScaledMax(x, n, scale);
  // A row of -inf has no shift that leaves it finite: e^-inf is 0 under any other.
  const float shift = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
  const auto vscale = hn::Set(d, scale), vshift = hn::Set(d, shift);
  const double sum = BlockedSum(n, [&](F32Vec acc, std::int64_t i, auto extent) HWY_ATTR {
    const auto e = Within(d, Exp(d, hn::MulSub(LoadF32(d, x + i, extent), vscale, vshift)), extent);
    StoreF32(d, e, exponentials + i, extent);
    return hn::Add(acc, e);
  });
  const auto inverse = hn::Set(d, sum == 0 ? 0.0f : static_cast<float>(1 / sum));
  WithOut(stream, out, [&](auto to) HWY_ATTR {
    ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
      to.Put(d, hn::Mul(LoadF32(d, exponentials + i, extent), inverse), i, extent);
    });
  });
  if (stream) hwy::FlushStream();
  return static_cast<float>(shift + std::log(sum));
}

float SoftmaxRow(DType dtype, const void* x, void* out, std::int64_t n, float scale, float* exponentials,
                 bool stream) {
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    return Row(static_cast<const T*>(x), static_cast<T*>(out), n, scale, exponentials, stream);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(SoftmaxRow);

float cpu::softmax_row(DType dtype, const void* x, void* out, std::int64_t n, float scale,
                       float* exponentials, bool stream) {
  return HWY_DYNAMIC_DISPATCH(SoftmaxRow)(dtype, x, out, n, scale, exponentials, stream);
}

}  // namespace kf
#endif
