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
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::First;
using kf::HWY_NAMESPACE::LoadF32;

// Two accumulators a row, two vectors of B and one broadcast must fit the registers: 16 of them before
// AVX-512 on x86, 32 with it and on Arm.
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_AVX2
inline constexpr int kTileRows = 6;
#else
inline constexpr int kTileRows = 12;
#endif
static_assert(kRowBlock % kTileRows == 0);

HWY_INLINE int StripWidth() { return 2 * static_cast<int>(hn::Lanes(hn::ScalableTag<float>())); }
HWY_INLINE int RoundUp(int n, int unit) { return (n + unit - 1) / unit * unit; }

// c[r][0 .. strip) = c[r][..] * scale[r] + sum over k < depth of a[r][k] * b[k][0 .. strip), for kTileRows
// rows; without `scale` the old c counts nothing.
template <int kStrideA, int kStrideC, bool kScale>
HWY_INLINE void Tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int depth, const float* scale,
                     float* HWY_RESTRICT c) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  using V = hn::Vec<decltype(d)>;
  V left[kTileRows], right[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    if constexpr (kScale) {
      const V factor = hn::Set(d, scale[r]);
      left[r] = hn::Mul(hn::Load(d, c + r * kStrideC), factor);
      right[r] = hn::Mul(hn::Load(d, c + r * kStrideC + lanes), factor);
    } else {
      left[r] = right[r] = hn::Zero(d);
    }
  }
  for (int k = 0; k < depth; ++k) {
    const V b0 = hn::Load(d, b), b1 = hn::Load(d, b + lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const V x = hn::Set(d, a[r * kStrideA]);
      left[r] = hn::MulAdd(x, b0, left[r]);
      right[r] = hn::MulAdd(x, b1, right[r]);
    }
    ++a;
    b += 2 * lanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    hn::Store(left[r], d, c + r * kStrideC);
    hn::Store(right[r], d, c + r * kStrideC + lanes);
  }
}

// Four keys by four dimensions, transposed: out[i] receives dimension i of the four.
template <class T>
HWY_INLINE void Transpose4x4(const T* k0, const T* k1, const T* k2, const T* k3, float* out, int out_stride) {
  const hn::CappedTag<float, 4> d;
  const hn::Repartition<double, decltype(d)> dd;
  const auto a = LoadF32(d, k0), b = LoadF32(d, k1), c = LoadF32(d, k2), e = LoadF32(d, k3);
  const auto ab01 = hn::BitCast(dd, hn::InterleaveLower(d, a, b)),
             ab23 = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
  const auto ce01 = hn::BitCast(dd, hn::InterleaveLower(d, c, e)),
             ce23 = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
  hn::Store(hn::BitCast(d, hn::InterleaveLower(dd, ab01, ce01)), d, out);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(dd, ab01, ce01)), d, out + out_stride);
  hn::Store(hn::BitCast(d, hn::InterleaveLower(dd, ab23, ce23)), d, out + 2 * out_stride);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(dd, ab23, ce23)), d, out + 3 * out_stride);
}

// Keys [begin, begin + count) into strips [head_dim][strip]; the last strip is filled up with zeros.
template <class T>
HWY_NOINLINE void PackKeys(const ops::KeyRows& rows, const T* data, std::int64_t head, int begin, int count,
                           int head_dim, float* out) {
  const int strip = StripWidth();
  const auto column = [&](int key) { return out + key / strip * strip * head_dim + key % strip; };
  rows.for_each_run(
      begin, begin + count, head, [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
        const T* source = data + offset;
        int key = static_cast<int>(first) - begin;
        const int end = key + static_cast<int>(run);
        while (key < end) {
          float* const to = column(key);
          if (key % 4 == 0 && key + 4 <= end) {
            for (int i = 0; i < head_dim; i += 4)
              Transpose4x4(source + i, source + rows.token_stride + i, source + 2 * rows.token_stride + i,
                           source + 3 * rows.token_stride + i, to + i * strip, strip);
            key += 4;
            source += 4 * rows.token_stride;
          } else {
            for (int i = 0; i < head_dim; ++i) to[i * strip] = to_f32(source[i]);
            ++key;
            source += rows.token_stride;
          }
        }
      });
  for (int key = count; key < RoundUp(count, strip); ++key)
    for (int i = 0; i < head_dim; ++i) column(key)[i * strip] = 0.0f;
}

// Values [begin, begin + count) into strips [kKeyBlock][strip] of dimensions; the last strip is filled up
// with zeros.
template <class T>
HWY_NOINLINE void PackValues(const ops::KeyRows& rows, const T* data, std::int64_t head, int begin, int count,
                             int head_dim, float* out) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int strip = 2 * lanes;
  rows.for_each_run(
      begin, begin + count, head, [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
        const T* source = data + offset;
        float* to = out + (first - begin) * strip;
        for (std::int64_t j = 0; j < run; ++j, source += rows.token_stride, to += strip) {
          for (int i = 0; i < RoundUp(head_dim, strip); i += lanes) {
            const int left = head_dim - i;
            const auto v = left >= lanes ? LoadF32(d, source + i)
                           : left > 0    ? LoadF32(d, source + i, First{static_cast<std::size_t>(left)})
                                         : hn::Zero(d);
            hn::Store(v, d, to + i / strip * strip * kKeyBlock + i % strip);
          }
        }
      });
}

// scores = q k^T for the strips of keys that any row of a tile may see. Limits grow with the row.
HWY_NOINLINE void TileScores(int rows, int count, int head_dim, AttentionScratch& s) {
  const int strip = StripWidth();
  for (int key = 0; key < count; key += strip)
    for (int r = 0; r < rows; r += kTileRows)
      if (key < s.limit[r + kTileRows - 1])
        Tile<kQueryStride, kKeyBlock, false>(s.q + r * kQueryStride, s.keys + key * head_dim, head_dim,
                                             nullptr, s.scores + r * kKeyBlock + key);
}

// out = out * rescale + probabilities v
HWY_NOINLINE void TileValues(int rows, int head_dim, AttentionScratch& s) {
  const int strip = StripWidth();
  for (int i = 0; i < head_dim; i += strip)
    for (int r = 0; r < rows; r += kTileRows)
      if (const int depth = s.limit[r + kTileRows - 1]; depth > 0)
        Tile<kKeyBlock, kOutStride, true>(s.scores + r * kKeyBlock, s.values + i * kKeyBlock, depth,
                                          s.rescale + r, s.out + r * kOutStride + i);
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
