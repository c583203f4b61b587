// Few query rows (decode): keys and values are used as they are read, once, for all rows at a time. Nothing
// is packed; the memory sets the pace.
#if defined(KF_CPU_ATTENTION_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_STREAM_INL_H_
#undef KF_CPU_ATTENTION_STREAM_INL_H_
#else
#define KF_CPU_ATTENTION_STREAM_INL_H_
#endif

#include <algorithm>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::LoadF32;
using kf::HWY_NAMESPACE::ReduceSum;

inline constexpr int kStreamRows = 8;  // beyond, packing pays

// Rows of K or V are far apart, which the hardware's prefetching does not follow: ask for whole rows ahead.
inline constexpr int kPrefetchRows = 8;
template <class T>
HWY_INLINE void PrefetchRow(const T* row, int head_dim) {
  constexpr int kLine = 64 / sizeof(T);
  for (int i = 0; i < head_dim; i += kLine) hwy::Prefetch(row + i);
}

// scores[r][0 .. kKeys) of kKeys consecutive rows of K.
template <int kRows, int kKeys, class D, class T>
HWY_INLINE void DotKeys(D d, const float* q, const T* k, std::int64_t stride, int head_dim, float* scores) {
  using V = hn::Vec<D>;
  const int lanes = static_cast<int>(hn::Lanes(d));
  V sum[kRows][kKeys];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) sum[r][j] = hn::Zero(d);
  for (int i = 0; i < head_dim; i += lanes) {
    V key[kKeys];
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) key[j] = LoadF32(d, k + j * stride + i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V x = hn::Load(d, q + r * kQueryStride + i);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) sum[r][j] = hn::MulAdd(x, key[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kKeys; ++j) scores[r * kKeyBlock + j] = ReduceSum(d, sum[r][j]);
}

// out[r][0 .. kVectors lanes) += sum over `count` rows of V of scores[r][j] * v[j][..]
template <int kRows, int kVectors, class D, class T>
HWY_INLINE void AddValues(D d, const float* probs, const T* v, std::int64_t stride, int count, float* out) {
  using V = hn::Vec<D>;
  const int lanes = static_cast<int>(hn::Lanes(d));
  V sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sum[r][i] = hn::Load(d, out + r * kOutStride + i * lanes);
  for (int j = 0; j < count; ++j, v += stride) {
    V value[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) value[i] = LoadF32(d, v + i * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V weight = hn::Set(d, probs[r * kKeyBlock + j]);
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) sum[r][i] = hn::MulAdd(weight, value[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) hn::Store(sum[r][i], d, out + r * kOutStride + i * lanes);
}

// scores = q k^T for keys [begin, begin + count).
template <int kRows, class D, class T>
HWY_NOINLINE void StreamScores(D d, const ops::KeyRows& rows, const T* data, std::int64_t head, int begin,
                               int count, int head_dim, AttentionScratch& s) {
  constexpr int kKeys = kRows <= 2 ? 4 : kRows <= 4 ? 2 : 1;  // so that kRows * kKeys sums fit the registers
  rows.for_each_run(begin, begin + count, head,
                    [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
                      const T* k = data + offset;
                      float* scores = s.scores + (first - begin);
                      std::int64_t j = 0;
                      for (; j + kKeys <= run; j += kKeys, k += kKeys * rows.token_stride, scores += kKeys) {
                        for (int ahead = 0; ahead < kKeys; ++ahead)
                          PrefetchRow(k + (kPrefetchRows + ahead) * rows.token_stride, head_dim);
                        DotKeys<kRows, kKeys>(d, s.q, k, rows.token_stride, head_dim, scores);
                      }
                      for (; j < run; ++j, k += rows.token_stride, ++scores)
                        DotKeys<kRows, 1>(d, s.q, k, rows.token_stride, head_dim, scores);
                    });
}

// out = out * rescale + probabilities v
template <int kRows, class D, class T>
HWY_NOINLINE void StreamValues(D d, const ops::KeyRows& rows, const T* data, std::int64_t head, int begin,
                               int count, int head_dim, AttentionScratch& s) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int r = 0; r < kRows; ++r) {
    const auto factor = hn::Set(d, s.rescale[r]);
    for (int i = 0; i < head_dim; i += lanes) {
      float* const out = s.out + r * kOutStride + i;
      hn::Store(hn::Mul(hn::Load(d, out), factor), d, out);
    }
  }
  // A few rows of V at a time: they stay in the first-level cache while the vectors of dimensions pass over
  // them.
  constexpr int kValues = 16;
  constexpr int kVectors = kRows == 1 ? 8 : kRows == 2 ? 4 : kRows <= 4 ? 2 : 1;
  rows.for_each_run(
      begin, begin + count, head, [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
        const T* v = data + offset;
        const float* probs = s.scores + (first - begin);
        for (std::int64_t j = 0; j < run; j += kValues, v += kValues * rows.token_stride, probs += kValues) {
          for (int ahead = 0; ahead < kValues; ++ahead)
            PrefetchRow(v + (kValues + ahead) * rows.token_stride, head_dim);
          const int values = static_cast<int>(std::min<std::int64_t>(kValues, run - j));
          int i = 0;
          for (; i + kVectors * lanes <= head_dim; i += kVectors * lanes)
            AddValues<kRows, kVectors>(d, probs, v + i, rows.token_stride, values, s.out + i);
          for (; i < head_dim; i += lanes)
            AddValues<kRows, 1>(d, probs, v + i, rows.token_stride, values, s.out + i);
        }
      });
}

// Calls f(d, rows) with the number of rows as a constant, and vectors that divide head_dim, a multiple of 8.
template <int kRows = 1, class F>
HWY_INLINE void WithStreamShape(int rows, int head_dim, F&& f) {
  if (rows == kRows) {
    const hn::ScalableTag<float> widest;
    if (head_dim % static_cast<int>(hn::Lanes(widest)) == 0) {
      f(widest, std::integral_constant<int, kRows>());
    } else {
      f(hn::CappedTag<float, 8>(), std::integral_constant<int, kRows>());
    }
  } else if constexpr (kRows < kStreamRows) {
    WithStreamShape<kRows + 1>(rows, head_dim, f);
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
