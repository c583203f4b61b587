// Three passes: the largest element, the exponentials (kept in f32 and summed), their quotients. The second, which
// computes most, fetches the next row, so that all find theirs in a cache.

#include "backends/cpu/elementwise/softmax_row.h"

#include <cmath>
#include <cstring>
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

// X is T, or f32 where something else has been made of it. A scale that is NaN is the plain one.
template <class X, class T>
float Row(const X* x, const X* next, T* out, std::int64_t n, float scale, float* exponentials, bool stream) {
  const F32Tag d;
  const float max = ScaledMax(x, n, scale);
  // A row of -inf has no shift that leaves it finite: e^-inf is 0 under any other.
  const float shift = max == -std::numeric_limits<float>::infinity() ? 0.0f : max;
  const auto vscale = hn::Set(d, scale), vshift = hn::Set(d, shift);
  using Exponential =
      std::conditional_t<std::is_same_v<T, Bf16>, F16, T>;  // lse is f32: bf16 would show in it
  const auto exponential = [&](auto v) HWY_ATTR {
    return ExpOfNegative<Exponential>(d, hn::MulSub(v, vscale, vshift));
  };
  const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
  const double sum = BlockedSum<Two>(n, [&](auto acc, std::int64_t i, auto extent) HWY_ATTR {
    const auto e = Within(d, Each(exponential, LoadInOrder<T>(d, x + i, extent)), extent);
    StoreF32(d, e, exponentials + i, extent);
    hwy::Prefetch(next + i);
    return Each(add, acc, e);
  });
  const auto inverse = hn::Set(d, sum == 0 ? 0.0f : static_cast<float>(1 / sum));
  const auto quotient = [&](auto e) HWY_ATTR { return hn::Mul(e, inverse); };
  using Result = std::conditional_t<std::is_same_v<X, T>, ResultOf<T>, T>;
  WithOut(stream, static_cast<Result*>(static_cast<void*>(out)), [&](auto to) HWY_ATTR {
    ForEachPair(n, [&](std::int64_t i, auto extent) HWY_ATTR {
      to.Put(d, Each(quotient, LoadF32(d, exponentials + i, extent)), i, extent);
    });
  });
  if (stream) hwy::FlushStream();
  return static_cast<float>(shift + std::log(sum));
}

// Whether the elements are not zero.
HWY_INLINE hn::Mask<F32Tag> LoadAllowed(F32Tag d, const std::uint8_t* p, All = {}) {
  const hn::Rebind<std::uint8_t, F32Tag> d8;
  const hn::RebindToSigned<F32Tag> di;
  return hn::RebindMask(d, hn::Ne(hn::PromoteTo(di, hn::LoadU(d8, p)), hn::Zero(di)));
}
HWY_INLINE hn::Mask<F32Tag> LoadAllowed(F32Tag d, const std::uint8_t* p, First first) {
  HWY_ALIGN std::uint8_t buffer[hn::MaxLanes(d)] = {};
  std::memcpy(buffer, p, first.count);
  return LoadAllowed(d, buffer);
}

// z = scale x + mask, M the mask's element type (uint8_t: boolean).
template <class T, class M>
void Mask(const T* x, const M* mask, std::int64_t step, std::int64_t n, float scale, float* z) {
  const F32Tag d;
  const auto vscale = hn::Set(d, scale), hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  HWY_ALIGN M one[hn::MaxLanes(d)];
  if (step == 0)
    for (M& m : one) m = *mask;
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const M* const m = step == 0 ? one : mask + i;
    const auto v = LoadF32(d, x + i, extent);
    if constexpr (std::is_same_v<M, std::uint8_t>) {
      StoreF32(d, hn::IfThenElse(LoadAllowed(d, m, extent), hn::Mul(v, vscale), hidden), z + i, extent);
    } else {
      StoreF32(d, hn::MulAdd(v, vscale, LoadF32(d, m, extent)), z + i, extent);
    }
  });
}

float MaskedSoftmaxRow(DType dtype, const void* x, const cpu::MaskRow& mask, void* out, std::int64_t n,
                       float scale, float* z, bool stream) {
  if (n == 0) return -std::numeric_limits<float>::infinity();
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    const auto* from = static_cast<const T*>(x);
    if (mask.dtype == DType::boolean) {
      Mask(from, static_cast<const std::uint8_t*>(mask.data), mask.step, n, scale, z);
    } else {
      with_activation_type(mask.dtype, [&]<class M>(std::type_identity<M>) {
        Mask(from, static_cast<const M*>(mask.data), mask.step, n, scale, z);
      });
    }
    return Row<float, T>(z, z, static_cast<T*>(out), n, 1.0f, z, stream);
  });
}

float SoftmaxRow(DType dtype, const void* x, const void* next, void* out, std::int64_t n, float scale,
                 float* exponentials, bool stream) {
  if (std::isnan(scale)) scale = std::numeric_limits<float>::quiet_NaN();
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    return Row<T, T>(static_cast<const T*>(x), static_cast<const T*>(next), static_cast<T*>(out), n, scale,
                     exponentials, stream);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(SoftmaxRow);
HWY_EXPORT(MaskedSoftmaxRow);

float cpu::softmax_row(DType dtype, const void* x, const void* next, void* out, std::int64_t n, float scale,
                       float* exponentials, bool stream) {
  return HWY_DYNAMIC_DISPATCH(SoftmaxRow)(dtype, x, next, out, n, scale, exponentials, stream);
}

float cpu::masked_softmax_row(DType dtype, const void* x, const MaskRow& mask, void* out, std::int64_t n,
                              float scale, float* exponentials, bool stream) {
  return HWY_DYNAMIC_DISPATCH(MaskedSoftmaxRow)(dtype, x, mask, out, n, scale, exponentials, stream);
}

}  // namespace kf
#endif
