// A row is read once or twice for its statistics and once more to be written, from the nearest cache. The sum
// with the residual is computed again rather than kept, so that `out` and `residual_out` may lie over the
// inputs and each is rounded once.

#include "backends/cpu/norm/norm_rows.h"

#include <cmath>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/norm/norm_rows.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/math-inl.h"
#include "backends/cpu/simd/pair-inl.h"
#include "backends/cpu/simd/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

// x, or x + residual.
template <class T, bool kResidual>
struct NormInput {
  const T* x;
  const T* residual;
  template <class Extent>
  HWY_INLINE auto At(std::int64_t i, Extent extent) const {
    const F32Tag d;
    const auto v = LoadF32(d, x + i, extent);
    if constexpr (kResidual) {
      return Each([](auto a, auto b) HWY_ATTR { return hn::Add(a, b); }, v, LoadF32(d, residual + i, extent));
    } else {
      return v;
    }
  }
  // Into the cache of this level.
  template <int kLevel>
  HWY_INLINE void Fetch(std::int64_t i) const {
    __builtin_prefetch(x + i, 0, 4 - kLevel);
    if constexpr (kResidual) __builtin_prefetch(residual + i, 0, 4 - kLevel);
  }
};

// h becomes (h - mean) * inv_std.
struct Statistics {
  float mean, inv_std;
};

// A centred row is gone over three times, and its first level of cache is full of itself, the weight and the bias: each pass fetches
// a third of the next row into the second level, so that memory is read all the time. (Measured for f32, 8192 x 4096, Zen 4: 0.87
// of a copy; 0.6 where the first two passes fetch all of it into the first level.) The sum of squares alone fetches nothing.
template <bool kCentred, class Input>
HWY_INLINE Statistics RowStatistics(const Input& input, const Input& next, std::int64_t n, float eps) {
  const F32Tag d;
  double mean = 0;
  if constexpr (kCentred) {
    const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
    const double sum = BlockedSum<Two>(n, [&](auto acc, std::int64_t i, auto extent) HWY_ATTR {
      next.template Fetch<2>(i / 3);
      return Each(add, acc, input.At(i, extent));
    });
    mean = sum / static_cast<double>(n);
  }
  const auto vmean = hn::Set(d, static_cast<float>(mean));
  const auto centre = [&](auto h) HWY_ATTR { return hn::Sub(h, vmean); };
  const auto add_square = [](auto acc, auto h) HWY_ATTR { return hn::MulAdd(h, h, acc); };
  const double squares = BlockedSum<Two>(n, [&](auto acc, std::int64_t i, auto extent) HWY_ATTR {
    auto h = input.At(i, extent);
    if constexpr (kCentred) {
      next.template Fetch<2>((n + i) / 3);
      h = Within(d, Each(centre, h), extent);
    }
    return Each(add_square, acc, h);
  });
  const double inv_std = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(eps));
  return {static_cast<float>(mean), static_cast<float>(inv_std)};
}

// W is the dtype of weight and bias, Out that of what is written.
template <bool kCentred, bool kResidual, class T, class W, class Out>
void Rows(const cpu::NormRows& a, std::int64_t begin, std::int64_t end) {
  using Result = std::conditional_t<std::is_same_v<W, T> && std::is_same_v<Out, T>, ResultOf<Out>, Out>;
  const F32Tag d;
  const auto* weight = static_cast<const W*>(a.weight);
  const auto* bias = static_cast<const W*>(a.bias);
  const auto input_of = [&](std::int64_t row) {
    return NormInput<T, kResidual>{a.x.as<T>() + a.x_rows(row),
                                   kResidual ? a.residual.as<T>() + a.residual_rows(row) : nullptr};
  };
  for (std::int64_t row = begin; row < end; ++row) {
    const NormInput<T, kResidual> input = input_of(row);
    const NormInput<T, kResidual> next = a.fetch_next && row + 1 < a.num_rows ? input_of(row + 1) : input;
    T* residual_out = a.residual_out.present() ? a.residual_out.as<T>() + a.residual_out_rows(row) : nullptr;
    const Statistics s = RowStatistics<kCentred>(input, next, a.n, a.eps);
    const auto mean = hn::Set(d, s.mean), inv_std = hn::Set(d, s.inv_std);
    const auto normalized = [&](auto h) HWY_ATTR {
      if constexpr (kCentred) h = hn::Sub(h, mean);
      return hn::Mul(h, inv_std);
    };
    const auto scale = [&](auto h, auto w) HWY_ATTR { return hn::Mul(normalized(h), w); };
    const auto scale_and_shift = [&](auto h, auto w, auto b)
                                     HWY_ATTR { return hn::MulAdd(normalized(h), w, b); };
    WithOut(a.stream, static_cast<Result*>(static_cast<void*>(a.out.as<Out>() + a.out_rows(row))),
            [&](auto out) HWY_ATTR {
              const auto write = [&](std::int64_t i, auto extent) HWY_ATTR {
                const auto h = input.At(i, extent);
                if (residual_out) StoreF32(d, h, residual_out + i, extent);
                const auto w = LoadInOrder<T>(d, weight + i, extent);
                if (kCentred && bias) {
                  out.Put(d, Each(scale_and_shift, h, w, LoadInOrder<T>(d, bias + i, extent)), i, extent);
                } else {
                  out.Put(d, Each(scale, h, w), i, extent);
                }
                next.template Fetch<kCentred ? 2 : 1>(kCentred ? (2 * a.n + i) / 3 : i);
              };
              if constexpr (std::is_same_v<Out, T>) {
                ForEachPair(a.n, write);
              } else {  // a pair of x's dtype may have another order
                ForEachVector(a.n, write);
              }
            });
  }
  if (a.stream) hwy::FlushStream();
}

template <class T, class W, class Out>
void RowsOf(const cpu::NormRows& a, std::int64_t begin, std::int64_t end) {
  if (a.residual.present()) {
    a.centred ? Rows<true, true, T, W, Out>(a, begin, end) : Rows<false, true, T, W, Out>(a, begin, end);
  } else {
    a.centred ? Rows<true, false, T, W, Out>(a, begin, end) : Rows<false, false, T, W, Out>(a, begin, end);
  }
}

template <class T, class Out>
void RowsWritten(const cpu::NormRows& a, std::int64_t begin, std::int64_t end) {
  a.weight_dtype == a.x.dtype ? RowsOf<T, T, Out>(a, begin, end) : RowsOf<T, float, Out>(a, begin, end);
}

void NormRowRange(const cpu::NormRows& a, std::int64_t begin, std::int64_t end) {
  with_activation_type(a.x.dtype, [&]<class T>(std::type_identity<T>) {
    a.out.dtype == a.x.dtype ? RowsWritten<T, T>(a, begin, end) : RowsWritten<T, float>(a, begin, end);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(NormRowRange);

void cpu::norm_rows(const NormRows& rows, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(NormRowRange)(rows, begin, end);
}

}  // namespace kf
#endif
