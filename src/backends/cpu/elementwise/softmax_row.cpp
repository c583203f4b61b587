// A row is read for its largest element and again for the exponentials, which are kept in f32 and summed. Their quotients are
// written while the next row's exponentials take their place, and the row after that is fetched: so memory is read and written all
// the time.

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

// The largest element, or the smallest. A NaN may or may not win; it shows in the sum of the exponentials.
template <bool kLargest, class T>
float Extreme(const T* x, std::int64_t n) {
  const F32Tag d;
  const auto none = hn::Set(d, (kLargest ? -1 : 1) * std::numeric_limits<float>::infinity());
  const auto further = [](auto a, auto b) HWY_ATTR { return kLargest ? hn::Max(a, b) : hn::Min(a, b); };
  F32Pair extreme = PairOf(none, none);
  ForEachPair(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto v = LoadF32(d, x + i, extent);
    if constexpr (std::is_same_v<decltype(extent), Two>) {
      extreme = Each(further, extreme, v);
    } else if constexpr (std::is_same_v<decltype(extent), All>) {
      SetFirst(extreme, further(FirstOf(extreme), v));
    } else {
      SetSecond(extreme, further(SecondOf(extreme), hn::IfThenElse(hn::FirstN(d, extent.count), v, none)));
    }
  });
  const auto both = further(FirstOf(extreme), SecondOf(extreme));
  return hn::GetLane(kLargest ? hn::MaxOfLanes(d, both) : hn::MinOfLanes(d, both));
}

// Largest scale * x.
template <class T>
float ScaledMax(const T* x, std::int64_t n, float scale) {
  return scale * (scale >= 0 ? Extreme<true>(x, n) : Extreme<false>(x, n));
}

// Of a row whose exponentials e^(scale x - shift) have been taken.
struct RowSum {
  float shift;
  double sum;
  float Inverse() const { return sum == 0 ? 0.0f : static_cast<float>(1 / sum); }
  float Lse() const { return static_cast<float>(shift + std::log(sum)); }
};

// Puts the exponentials of x, for results that are kept as T, where `exponentials` points; X is T, or f32 where something
// else has been made of it. before(i, extent) is called for each vector before what lies there is overwritten. A scale that
// is NaN is the plain one.
template <class T, class X, class F>
HWY_INLINE RowSum Exponentials(const X* x, const X* next, std::int64_t n, float scale, float* exponentials,
                               F&& before) {
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
    before(i, extent);
    StoreF32(d, e, exponentials + i, extent);
    hwy::Prefetch(next + i);
    return Each(add, acc, e);
  });
  return {shift, sum};
}

// A vector of out = exponentials * inverse.
template <class Out, class Extent>
HWY_INLINE void PutQuotient(const Out& out, const float* exponentials, F32Vec inverse, std::int64_t i,
                            Extent extent) {
  const F32Tag d;
  const auto quotient = [&](auto e) HWY_ATTR { return hn::Mul(e, inverse); };
  out.Put(d, Each(quotient, LoadF32(d, exponentials + i, extent)), i, extent);
}

template <class Result>
void Quotients(const float* exponentials, float inverse, std::int64_t n, Result* row, bool stream) {
  const auto factor = hn::Set(F32Tag(), inverse);
  WithOut(stream, row, [&](auto out) HWY_ATTR {
    ForEachPair(
        n, [&](std::int64_t i, auto extent) HWY_ATTR { PutQuotient(out, exponentials, factor, i, extent); });
  });
  if (stream) hwy::FlushStream();
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
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    const auto* from = static_cast<const T*>(x);
    if (mask.dtype == DType::boolean) {
      Mask(from, static_cast<const std::uint8_t*>(mask.data), mask.step, n, scale, z);
    } else {
      with_activation_type(mask.dtype, [&]<class M>(std::type_identity<M>) {
        Mask(from, static_cast<const M*>(mask.data), mask.step, n, scale, z);
      });
    }
    const RowSum row = Exponentials<T>(z, z, n, 1.0f, z, [](auto...) {});
    Quotients(z, row.Inverse(), n, static_cast<T*>(out), stream);
    return row.Lse();
  });
}

template <class T>
void Rows(const cpu::SoftmaxRows& a, std::int64_t begin, std::int64_t end, float* exponentials) {
  const auto x_of = [&](std::int64_t row) { return a.x.as<T>() + a.x_rows(row); };
  const auto out_of = [&](std::int64_t row) {
    return static_cast<ResultOf<T>*>(static_cast<void*>(a.out.as<T>() + a.out_rows(row)));
  };
  const float scale = std::isnan(a.scale) ? std::numeric_limits<float>::quiet_NaN() : a.scale;
  RowSum sum{};
  for (std::int64_t row = begin; row < end; ++row) {
    const T* const x = x_of(row);
    const T* const next = a.fetch_next && row + 1 < end ? x_of(row + 1) : x;
    if (row == begin) {
      sum = Exponentials<T>(x, next, a.n, scale, exponentials, [](auto...) {});
    } else {
      const auto inverse = hn::Set(F32Tag(), sum.Inverse());
      WithOut(a.stream, out_of(row - 1), [&](auto out) HWY_ATTR {
        sum = Exponentials<T>(x, next, a.n, scale, exponentials, [&](std::int64_t i, auto extent) HWY_ATTR {
          PutQuotient(out, exponentials, inverse, i, extent);
        });
      });
    }
    if (a.lse.present()) a.lse.as<float>()[a.lse_rows(row)] = sum.Lse();
  }
  if (begin < end) Quotients(exponentials, sum.Inverse(), a.n, out_of(end - 1), a.stream);
}

void SoftmaxRowRange(const cpu::SoftmaxRows& a, std::int64_t begin, std::int64_t end, float* exponentials) {
  with_activation_type(a.x.dtype,
                       [&]<class T>(std::type_identity<T>) { Rows<T>(a, begin, end, exponentials); });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(SoftmaxRowRange);
HWY_EXPORT(MaskedSoftmaxRow);

void cpu::softmax_rows(const SoftmaxRows& rows, std::int64_t begin, std::int64_t end, float* exponentials) {
  HWY_DYNAMIC_DISPATCH(SoftmaxRowRange)(rows, begin, end, exponentials);
}

float cpu::masked_softmax_row(DType dtype, const void* x, const MaskRow& mask, void* out, std::int64_t n,
                              float scale, float* exponentials, bool stream) {
  return HWY_DYNAMIC_DISPATCH(MaskedSoftmaxRow)(dtype, x, mask, out, n, scale, exponentials, stream);
}

}  // namespace kf
#endif
