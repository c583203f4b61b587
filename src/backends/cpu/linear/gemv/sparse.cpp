#include "backends/cpu/linear/gemv/sparse.h"

#include <algorithm>

#include "backends/cpu/linear/gemm.h"
#include "core/quantized.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemv/sparse.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/gemv/scales-inl.h"
#include "backends/cpu/linear/gemv/sparse_tokens-inl.h"
#include "backends/cpu/linear/sparse-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

// With more tokens than these, products with the zeros of an expanded row cost more than finding each value's column.
inline constexpr int kExpandedTokens = 4;

// Bytes: the processor's own fetching ends with each page.
inline constexpr std::int64_t kFetchAhead = 3072;

// One row, for at most four tokens: what is known of it stays in registers, and x, which is read again for every row, in the first cache.
//
// kEven: every vector of columns has as many values as the next, so that where they lie is known without their mask.
template <DType kType, int kTokens, bool kEven>
HWY_INLINE void SparseDot(const Weight& w, std::int64_t row_index, const float* x, std::size_t x_stride,
                          float* sums, std::size_t sums_stride) {
  constexpr bool kScaled = SparseValues<kType>::kScaled;
  constexpr std::size_t kVectors = kSparseColumns / kSparseLanes;
  constexpr std::size_t kChains =
      kTokens == 1 ? std::min<std::size_t>(4, kVectors) : 2;  // of additions that overlap
  const F32Tag d;
  SparseRow<kType> row;
  row.Start(w, row_index, 0);
  const std::int64_t per_vector =
      kEven ? static_cast<std::int64_t>(kSparseLanes) / w.sparsity.m * w.sparsity.n : 0;
  F32Vec acc[kChains][kTokens];
  for (std::size_t c = 0; c < kChains; ++c)
    for (int t = 0; t < kTokens; ++t) acc[c][t] = hn::Zero(d);
  const ScaleGrid grid = kScaled ? scale_grid(w.layout, w.quantization) : ScaleGrid{};
  SparseScale scale;
  alignas(64) float held_scales[kScaled ? kScalesHeld : 1], held_zeros[kScaled ? kScalesHeld : 1];
  std::int64_t group = -1, groups = kScaled ? ceil_div(w.layout.dim(1), grid.columns) : 0;
  const auto step = [&](std::int64_t k, std::uint32_t bits) HWY_ATTR {
    if constexpr (kScaled) {
      if (k == (group + 1) * grid.columns) {
        const std::int64_t held = ++group % kMaxGroups;
        if (held == 0)
          LoadScales(w.quantization, grid, row_index, group, std::min(kMaxGroups, groups - group),
                     held_scales, held_zeros);
        scale = {hn::Set(d, held_scales[held]), hn::Set(d, held_zeros[held])};
      }
    }
    std::int64_t value;
    const std::uint8_t* const from =
        kEven ? row.Skip(per_vector * static_cast<std::int64_t>(kVectors), &value) : row.Next(bits, &value);
    __builtin_prefetch(SparseValues<kType>::Address(from, value) + kFetchAhead);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      constexpr std::uint32_t kMask = (1u << kSparseLanes) - 1;
      const std::uint32_t lanes = bits >> (v * kSparseLanes) & kMask;
      const F32Vec wv = SparseVector<kType>(from, value, lanes, scale);
      value += kEven ? per_vector : std::popcount(lanes);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        acc[v % kChains][t] =
            hn::MulAdd(wv, hn::Load(d, x + static_cast<std::size_t>(t) * x_stride + v * kSparseLanes),
                       acc[v % kChains][t]);
    }
    x += kSparseColumns;
  };
  std::int64_t k = 0;
  for (const std::uint8_t* mask = row.mask; k + kSparseColumns <= w.layout.dim(1);
       k += kSparseColumns, mask += 4) {
    std::uint32_t bits;
    std::memcpy(&bits, mask, sizeof bits);
    step(k, bits);
  }
  if (k < w.layout.dim(1)) step(k, mask_bits(row.mask, row.mask_bytes, k));
  for (int t = 0; t < kTokens; ++t) {
    F32Vec sum = acc[0][t];
    for (std::size_t c = 1; c < kChains; ++c) sum = hn::Add(sum, acc[c][t]);
    sums[static_cast<std::size_t>(t) * sums_stride] = ReduceSum(d, sum);
  }
}

template <DType kType, int kTokens>
HWY_NOINLINE void SparseTokens(const Weight& w, std::int64_t begin, std::int64_t end, const float* x,
                               std::size_t x_stride, float* sums, std::size_t sums_stride) {
  const bool even = w.sparsity.m > 0 && static_cast<std::int64_t>(kSparseLanes) % w.sparsity.m == 0;
  for (std::int64_t row = begin; row < end; ++row) {
    float* const to = sums + (row - begin);
    if (even)
      SparseDot<kType, kTokens, true>(w, row, x, x_stride, to, sums_stride);
    else
      SparseDot<kType, kTokens, false>(w, row, x, x_stride, to, sums_stride);
  }
}

void DotSparseRows(const Weight& w, const GemvInput& input, std::int64_t begin, std::int64_t end, float* sums,
                   std::size_t sums_stride) {
  WithSparseDType(w.layout.dtype, [&]<DType kType>(std::integral_constant<DType, kType>) HWY_ATTR {
    const float* x = input.values;
    const std::size_t stride = input.value_stride;
    int left = input.num_tokens;
    if (left > kExpandedTokens && !HasSpecials(x, stride, left))
      return SparseManyTokens<kType>(w, begin, end, x, stride, left, sums, sums_stride);
    for (; left >= 4; left -= 4, x += 4 * stride, sums += 4 * sums_stride)
      SparseTokens<kType, 4>(w, begin, end, x, stride, sums, sums_stride);
    if (left == 3) SparseTokens<kType, 3>(w, begin, end, x, stride, sums, sums_stride);
    if (left == 2) SparseTokens<kType, 2>(w, begin, end, x, stride, sums, sums_stride);
    if (left == 1) SparseTokens<kType, 1>(w, begin, end, x, stride, sums, sums_stride);
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(DotSparseRows);

void dot_sparse_rows(const Weight& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                     float* sums, std::size_t sums_stride) {
  HWY_DYNAMIC_DISPATCH(DotSparseRows)(weight, input, begin, end, sums, sums_stride);
}

}  // namespace kf::cpu
#endif
