// Many query rows: a block of keys and of values is packed into strips of f32, and both products run on
// register tiles.
#if defined(KF_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_TILE_INL_H_
#undef KF_CPU_ATTENTION_TILE_INL_H_
#else
#define KF_CPU_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/stream-inl.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::F32Vec;
using kf::HWY_NAMESPACE::First;
using kf::HWY_NAMESPACE::MultiplyTile;
using kf::HWY_NAMESPACE::Transpose4x4;

inline constexpr int kTile = kTileRows;
static_assert(kRowBlock % kTile == 0);

HWY_INLINE int StripWidth() { return 2 * static_cast<int>(hn::Lanes(hn::ScalableTag<float>())); }
HWY_INLINE int RoundUp(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Asks for the row that is packed kAhead rows after this one, if it is among the `left`: rows of a head lie pages apart,
// where the hardware does not look ahead.
template <class T>
HWY_INLINE void PrefetchAhead(const T* row, std::int64_t stride, std::int64_t left, int head_dim) {
  constexpr std::int64_t kAhead = 8;
  if (left > kAhead) PrefetchRow(advance(row, kAhead * stride), head_dim);
}

// Rows to be packed next, where they lie, or decoded to `buffer`.
template <class T>
struct PackRows {
  const T* data;
  std::int64_t stride;
};
template <class T>
HWY_INLINE auto RowsToPack(const KvSource<T>& source, std::int64_t key, std::int64_t head, int count,
                           const T* row, int head_dim, float* buffer) {
  if constexpr (kIsCode<T>) {
    DecodeRows(source, key, head, count, row, buffer);
    return PackRows<float>{buffer, head_dim};
  } else {
    return PackRows<T>{row, source.rows.token_stride};
  }
}

// Keys of a run into strips [head_dim][strip].
template <class T>
HWY_NOINLINE void PackKeys(const KvSource<T>& source, std::int64_t head, const KeyRun& keys, int head_dim,
                           float* out) {
  const int strip = StripWidth();
  const std::int64_t stride = source.rows.token_stride;
  HWY_ALIGN float buffer[kIsCode<T> ? 4 * kMaxHeadDim : 1];
  const auto column = [&](int key) { return out + key / strip * strip * head_dim + key % strip; };
  source.rows.for_each_run(
      keys.key, keys.key + keys.count, head, [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
        const T* row = advance(source.data, offset);
        int key = static_cast<int>(first) - keys.key + keys.column;  // its column
        const int end = key + static_cast<int>(run);
        while (key < end) {
          float* const to = column(key);
          if (key % strip + 4 <= strip && key + 4 <= end) {
            for (int r = 0; r < 4; ++r)
              PrefetchAhead(advance(row, r * stride), stride, end - key - r, head_dim);
            const auto from =
                RowsToPack(source, keys.key + (key - keys.column), head, 4, row, head_dim, buffer);
            for (int i = 0; i < head_dim; i += 4)
              Transpose4x4(from.data + i, from.data + from.stride + i, from.data + 2 * from.stride + i,
                           from.data + 3 * from.stride + i, to + i * strip, static_cast<std::size_t>(strip));
            key += 4;
            row = advance(row, 4 * stride);
          } else {
            const auto from =
                RowsToPack(source, keys.key + (key - keys.column), head, 1, row, head_dim, buffer);
            for (int i = 0; i < head_dim; ++i) to[i * strip] = to_f32(from.data[i]);
            ++key;
            row = advance(row, stride);
          }
        }
      });
}

// Zeros for the columns of the last strip that no key has.
HWY_INLINE void PadKeys(int count, int head_dim, float* out) {
  const int strip = StripWidth();
  for (int key = count; key < RoundUp(count, strip); ++key)
    for (int i = 0; i < head_dim; ++i) out[key / strip * strip * head_dim + key % strip + i * strip] = 0.0f;
}

// Values of a run into strips [kValueStrip][strip] of dimensions; the last strip is filled up
// with zeros.
template <class T>
HWY_NOINLINE void PackValues(const KvSource<T>& source, std::int64_t head, const KeyRun& keys, int head_dim,
                             float* out) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int strip = 2 * lanes;
  const std::int64_t stride = source.rows.token_stride;
  HWY_ALIGN float buffer[kIsCode<T> ? kMaxHeadDim : 1];
  source.rows.for_each_run(
      keys.key, keys.key + keys.count, head, [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
        const T* row = advance(source.data, offset);
        float* to = out + (first - keys.key + keys.column) * strip;
        for (std::int64_t j = 0; j < run; ++j, row = advance(row, stride), to += strip) {
          PrefetchAhead(row, stride, run - j, head_dim);
          const auto* const from = RowsToPack(source, first + j, head, 1, row, head_dim, buffer).data;
          for (int i = 0; i < RoundUp(head_dim, strip); i += lanes) {
            const int left = head_dim - i;
            const auto v = left >= lanes ? LoadF32(d, from + i)
                           : left > 0    ? LoadF32(d, from + i, First{static_cast<std::size_t>(left)})
                                         : hn::Zero(d);
            hn::Store(v, d, to + i / strip * strip * kValueStrip + i % strip);
          }
        }
      });
}

// scores = q k^T for the strips of keys that any row of a tile may see. Neither end goes back from row to row.
HWY_NOINLINE void TileScores(int rows, int count, int head_dim, AttentionScratch& s) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  const int strip = StripWidth();
  const auto alone = [](std::size_t, const float*, F32Vec sum) HWY_ATTR { return sum; };
  for (int key = 0; key < count; key += strip) {
    const float* const keys = s.keys + key * head_dim;
    for (int r = 0; r < rows; r += kTile)
      if (key < s.limit[r + kTile - 1] && key + strip > s.first[r])
        MultiplyTile<kTile, kQueryStride, 1, 2>(s.q + r * kQueryStride, keys, keys + lanes,
                                                static_cast<std::size_t>(head_dim), alone,
                                                s.scores + r * kKeyBlock + key, kKeyBlock);
  }
}

// out = out * rescale + probabilities v. Keys that not all rows of a tile may see are added row by row: a zero
// probability would not keep out an infinity or a NaN among their values.
HWY_NOINLINE void TileValues(int rows, int head_dim, AttentionScratch& s) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  const int strip = StripWidth();
  for (int i = 0; i < head_dim; i += strip) {
    const float* const values = s.values + i * kValueStrip;
    for (int r = 0; r < rows; r += kTile) {
      const int last = r + kTile - 1;
      if (s.first[r] >= s.limit[last]) continue;
      const auto rescaled =
          [d, rescale = s.rescale + r](std::size_t row, const float* out, F32Vec sum)
              HWY_ATTR { return hn::MulAdd(hn::Load(d, out), hn::Set(d, rescale[row]), sum); };
      // What all rows see; nothing where a window is narrower than the tile.
      const int begin = s.first[last], end = std::max(begin, s.limit[r]);
      MultiplyTile<kTile, kKeyBlock, 1, 2>(
          s.scores + r * kKeyBlock + begin, values + begin * strip, values + begin * strip + lanes,
          static_cast<std::size_t>(end - begin), rescaled, s.out + r * kOutStride + i, kOutStride);
      const auto add = [&](int row, int key, int key_end) HWY_ATTR {
        float* const out = s.out + row * kOutStride + i;
        for (; key < key_end; ++key) {
          const auto weight = hn::Set(d, s.scores[row * kKeyBlock + key]);
          const float* const value = values + key * strip;
          hn::Store(hn::MulAdd(weight, hn::Load(d, value), hn::Load(d, out)), d, out);
          hn::Store(hn::MulAdd(weight, hn::Load(d, value + lanes), hn::Load(d, out + lanes)), d, out + lanes);
        }
      };
      for (int row = r; row <= last; ++row) {
        add(row, s.first[row], std::min(begin, s.limit[row]));
        add(row, std::max(end, s.first[row]), s.limit[row]);
      }
    }
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
