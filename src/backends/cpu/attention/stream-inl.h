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
#include "backends/cpu/attention/codes-inl.h"
#include "backends/cpu/attention/prefetch.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"
#include "backends/cpu/simd/sums-inl.h"
#include "backends/cpu/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::kTileRows;
using kf::HWY_NAMESPACE::ReduceSum;

// Keys [begin, end) of some heads, which have columns from `column` on. What is read after them are the keys [next, next_end) of
// another source, or of the same.
template <class T>
struct Block {
  std::int64_t first_head;
  int heads, begin, end, column;
  const KvSource<T>& next_source;
  std::int64_t next, next_end;

  std::int64_t key_of(int at) const { return begin + (at - column); }
};

// Spans of a few keys of one head, visited in the order in which they lie in memory.
inline constexpr int kSpanOfHead = 16;  // keys, where a head's keys adjoin
inline constexpr int kSpanOfToken = 8;  // keys, where a key's heads adjoin
inline constexpr int kLongestSpan = std::max(kSpanOfHead, kSpanOfToken);

// Bytes that are asked for ahead of their use, into the second-level cache: the first holds few requests at a time, and
// loads would wait behind these.
inline constexpr std::int64_t kBytesAhead = 6144;

// Calls f(head, first column, keys, row of the first, first row of a span that follows: to be fetched
// meanwhile, for the hardware's prefetching does not follow jumps from page to page and head to head).
template <class T, class F>
HWY_INLINE void ForEachSpan(const KvSource<T>& source, const Block<T>& block, int head_dim, F&& f) {
  struct Place {
    std::int64_t key;
    int head;
  };
  const ops::KeyRows& rows = source.rows;
  const std::int64_t longest = rows.head_stride < rows.token_stride ? kSpanOfToken : kSpanOfHead;
  const auto row_at = [&](const KvSource<T>& from, Place at) {
    return advance(from.data, from.rows.offset(at.key, block.first_head + at.head));
  };
  const std::int64_t span_bytes = longest * head_dim * static_cast<std::int64_t>(sizeof(T)) / kElementsOf<T>;
  const std::int64_t spans = std::max<std::int64_t>(kBytesAhead / span_bytes, 1);
  const Place step{spans / block.heads * longest, static_cast<int>(spans % block.heads)};

  for (Place at{block.begin, 0}; at.key < block.end;) {
    const std::int64_t keys =
        std::min({longest, block.end - at.key, rows.page_size - rows.row_of_page(at.key)});
    const T* const row = row_at(source, at);
    Place ahead{at.key + step.key, at.head + step.head};
    if (ahead.head >= block.heads) ahead = {ahead.key + keys, ahead.head - block.heads};
    const bool beyond = ahead.key >= block.end;
    if (beyond) ahead.key += block.next - block.end;
    f(at.head, static_cast<int>(at.key) - block.begin + block.column, static_cast<int>(keys), row,
      !beyond                      ? row_at(source, ahead)
      : ahead.key < block.next_end ? row_at(block.next_source, ahead)
                                   : row);
    at = at.head + 1 < block.heads ? Place{at.key, at.head + 1} : Place{at.key + keys, 0};
  }
}

template <class T>
HWY_INLINE void PrefetchRow(const T* row, int head_dim) {
  constexpr int kLine = 64 / sizeof(T) * kElementsOf<T>;
  for (int i = 0; i < head_dim; i += kLine) __builtin_prefetch(advance(row, i), 0, 2);
}

// What is asked for of a span of `count` rows.
template <class T>
HWY_INLINE void PrefetchSpan(const T* row, std::int64_t stride, int count, int head_dim) {
  const int row_bytes = head_dim * static_cast<int>(sizeof(T)) / kElementsOf<T>,
            rows = fetched_rows(count, row_bytes, std::is_same_v<T, float>);
  for (int j = 0; j < rows; ++j) PrefetchRow(advance(row, j * stride), head_dim);
}

// scores[r][0 .. kKeys) of kKeys consecutive rows of K. Codes: times the rows' scales.
template <int kRows, int kKeys, class D, class T>
HWY_INLINE void DotKeys(D d, const float* q, const T* k, std::int64_t stride, const float* scale,
                        int head_dim, float* scores) {
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
    for (int j = 0; j < kKeys; ++j) key[j] = LoadElements(d, advance(k, j * stride + i));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V x = hn::Load(d, q + r * kQueryStride + i);
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) sum[r][j] = hn::MulAdd(x, key[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float* const to = scores + r * kKeyBlock;
    if constexpr (kKeys == 4 && hn::MaxLanes(D()) >= 4) {
      StoreLaneSums(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], to);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < kKeys; ++j) to[j] = ReduceSum(d, sum[r][j]);
    }
    if constexpr (kIsCode<T>)
      for (int j = 0; j < kKeys; ++j) to[j] *= scale[j];
  }
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
  for (int j = 0; j < count; ++j, v = advance(v, stride)) {
    V value[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) value[i] = LoadElements(d, advance(v, i * lanes));
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

// The scores of `count` neighbouring keys of a head.
template <int kRows, class D, class T>
HWY_INLINE void ScoreSpan(D d, const float* q, const T* k, std::int64_t stride, const float* scale, int count,
                          int head_dim, float* scores) {
  // So that kRows * kKeys sums, the keys and a query fit the registers.
  constexpr int kMany = kTileRows > 6 ? 6 : 2;
  constexpr int kKeys = kRows <= kMany ? 4 : kRows <= 4 || kTileRows > 6 ? 2 : 1;
  int j = 0;
  for (; j + kKeys <= count; j += kKeys, k = advance(k, kKeys * stride))
    DotKeys<kRows, kKeys>(d, q, k, stride, scale + j, head_dim, scores + j);
  for (; j < count; ++j, k = advance(k, stride))
    DotKeys<kRows, 1>(d, q, k, stride, scale + j, head_dim, scores + j);
}

// scores = q k^T for the block's keys.
template <int kRows, class D, class T>
HWY_NOINLINE void StreamScores(D d, const KvSource<T>& source, const Block<T>& block, int head_dim,
                               AttentionScratch& s) {
  const std::int64_t stride = source.rows.token_stride;
  ForEachSpan(source, block, head_dim, [&](int head, int first, int count, const T* k, const T* ahead) {
    const float* const q = s.q + head * kRows * kQueryStride;
    float* const scores = s.scores + head * kRows * kKeyBlock + first;
    float scale[kLongestSpan];
    PrefetchSpan(ahead, stride, count, head_dim);
    if constexpr (kIsCode<T>) {
      const std::int64_t key = block.key_of(first), kv_head = block.first_head + head;
      if (!source.scales.one_a_row()) {
        DecodeRows(source, key, kv_head, count, k, s.keys);
        return ScoreSpan<kRows>(d, q, s.keys, head_dim, scale, count, head_dim, scores);
      }
      source.scales.load(key, kv_head, count, kUnit<T>, scale);
    }
    ScoreSpan<kRows>(d, q, k, stride, scale, count, head_dim, scores);
  });
}

// out += probabilities v for `count` neighbouring values of a head, from column `key` on. Keys that not all rows
// may see are added row by row: a zero probability would not keep out an infinity or a NaN among their values.
template <int kRows, class D, class T>
HWY_INLINE void AddSpan(D d, int head, int key, int count, const T* v, std::int64_t stride, int head_dim,
                        AttentionScratch& s) {
  const int lanes = static_cast<int>(hn::Lanes(d));
  // A span stays in the first-level cache while the vectors of dimensions pass over it.
  constexpr int kVectors = kRows == 1 ? 8 : kRows == 2 ? 4 : kRows <= 4 ? 2 : 1;
  const float* const probs = s.scores + head * kRows * kKeyBlock + key;
  float* const out = s.out + head * kRows * kOutStride;
  const auto first = [&](int r) { return std::clamp(s.first[head * kRows + r] - key, 0, count); };
  const auto limit = [&](int r) { return std::clamp(s.limit[head * kRows + r] - key, 0, count); };
  // What all rows see; nothing where a window is narrower than the rows are apart.
  const int begin = first(kRows - 1), end = std::max(begin, limit(0));
  const T* const from = advance(v, begin * stride);
  int i = 0;
  for (; i + kVectors * lanes <= head_dim; i += kVectors * lanes)
    AddValues<kRows, kVectors>(d, probs + begin, advance(from, i), stride, end - begin, out + i);
  for (; i < head_dim; i += lanes)
    AddValues<kRows, 1>(d, probs + begin, advance(from, i), stride, end - begin, out + i);
  if (kRows == 1 || end - begin == count) return;
  const auto add = [&](int r, int from, int to) {
    for (int c = 0; from < to && c < head_dim; c += lanes)
      AddValues<1, 1>(d, probs + r * kKeyBlock + from, advance(v, from * stride + c), stride, to - from,
                      out + r * kOutStride + c);
  };
  for (int r = 0; r < kRows; ++r) {
    add(r, first(r), std::min(begin, limit(r)));
    add(r, std::max(end, first(r)), limit(r));
  }
}

// out = out * rescale
HWY_INLINE void RescaleSums(int rows, int head_dim, AttentionScratch& s) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  static_assert(kOutStride % hn::MaxLanes(hn::ScalableTag<float>()) ==
                0);  // whole vectors fit beyond head_dim
  for (int r = 0; r < rows; ++r) {
    const auto factor = hn::Set(d, s.rescale[r]);
    for (int i = 0; i < head_dim; i += lanes) {
      float* const out = s.out + r * kOutStride + i;
      hn::Store(hn::Mul(hn::Load(d, out), factor), d, out);
    }
  }
}

// out += probabilities v.
template <int kRows, class D, class T>
HWY_NOINLINE void StreamValues(D d, const KvSource<T>& source, const Block<T>& block, int head_dim,
                               AttentionScratch& s) {
  const std::int64_t stride = source.rows.token_stride;
  ForEachSpan(source, block, head_dim, [&](int head, int first, int count, const T* v, const T* ahead) {
    PrefetchSpan(ahead, stride, count, head_dim);
    if constexpr (kIsCode<T>) {
      const std::int64_t key = block.key_of(first), kv_head = block.first_head + head;
      if (!source.scales.one_a_row()) {
        DecodeRows(source, key, kv_head, count, v, s.keys);
        return AddSpan<kRows>(d, head, first, count, s.keys, head_dim, head_dim, s);
      }
      // A row's scale goes to its probabilities, which are used once.
      float scale[kLongestSpan];
      source.scales.load(key, kv_head, count, kUnit<T>, scale);
      float* probs = s.scores + head * kRows * kKeyBlock + first;
      for (int r = 0; r < kRows; ++r, probs += kKeyBlock)
        for (int j = 0; j < count; ++j) probs[j] *= scale[j];
    }
    AddSpan<kRows>(d, head, first, count, v, stride, head_dim, s);
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
