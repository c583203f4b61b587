// Products of sparse rows with several tokens: what is not stored is not multiplied.
//
// The lanes of a vector are tokens. Some columns of x at a time are turned, [column][token], and stay in the first cache
// while rows pass by; a value meets the vector of its column, which the next bit of the mask says.
#if defined(KF_CPU_LINEAR_GEMV_SPARSE_TOKENS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMV_SPARSE_TOKENS_INL_H_
#undef KF_CPU_LINEAR_GEMV_SPARSE_TOKENS_INL_H_
#else
#define KF_CPU_LINEAR_GEMV_SPARSE_TOKENS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/sparse-inl.h"
#include "backends/cpu/simd/tile-inl.h"
#include "core/quantized.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns that are turned at a time, for kTokens tokens: half of a first cache of 32 KB, and a chain of at most some hundred additions.
template <std::size_t kTokens>
inline constexpr std::int64_t kTurnedColumns = std::min<std::int64_t>(4096 / kTokens, 512);
// Rows that pass by the same columns: enough that turning these costs little, few enough that the sums stay near.
inline constexpr std::int64_t kPassingRows = 384;
// How many rows ahead values are asked for.
inline constexpr std::int64_t kRowsAhead = 3;

// panel[c][t] = x[t][c] for whole words of a mask. Lanes without a token repeat the last.
template <std::size_t kTokens>
HWY_INLINE void TurnColumns(const float* x, std::size_t stride, int tokens, std::int64_t columns,
                            float* HWY_RESTRICT panel) {
  const auto row = [&](std::size_t t) {
    return x + std::min(t, static_cast<std::size_t>(tokens) - 1) * stride;
  };
  for (std::size_t t = 0; t < kTokens; t += 4)
    for (std::int64_t c = 0; c < columns; c += 4)
      kf::HWY_NAMESPACE::Transpose4x4(row(t) + c, row(t + 1) + c, row(t + 2) + c, row(t + 3) + c,
                                      panel + static_cast<std::size_t>(c) * kTokens + t, kTokens);
}

// The values of these columns in f32: where they lie, if they lie so and are not among the weight's last; else in `buffer`.
template <DType kType>
HWY_INLINE const float* RowValues(const Weight& w, const ScaleGrid& grid, SparseRow<kType>& row,
                                  std::int64_t row_index, std::int64_t k, std::int64_t columns,
                                  float* HWY_RESTRICT buffer) {
  if constexpr (kType == DType::f32)
    if (HWY_LIKELY(row.at + columns <= row.end)) return reinterpret_cast<const float*>(row.first) + row.at;
  SparseScale scale;
  std::int64_t group = -1;
  float* to = buffer;
  for (std::int64_t c = k; c < k + columns; c += kSparseColumns) {
    if constexpr (SparseValues<kType>::kScaled)
      if (const std::int64_t here = c / grid.columns; here != group) {
        group = here;
        scale = ScaleOf(w, grid, row_index, group);
      }
    const std::int64_t stored = std::popcount(mask_bits(row.mask, row.mask_bytes, c));
    NextValues<kType>(row, stored, scale, to);
    to += stored;
  }
  return buffer;
}

// What a row's values add to the sums of all tokens.
template <std::size_t kTokens>
struct TokenSums {
  using D = hn::CappedTag<float, kTokens>;
  static constexpr std::size_t kLanes = hn::MaxLanes(D()), kVectors = kTokens / kLanes;
  static constexpr std::size_t kChains = kVectors >= 4 ? 1 : 4 / kVectors;  // of additions that overlap
  static constexpr std::size_t kStep = 4;
  hn::Vec<D> acc[kChains][kVectors];

  HWY_INLINE TokenSums() {
#pragma GCC unroll 4
    for (std::size_t c = 0; c < kChains; ++c)
#pragma GCC unroll 4
      for (std::size_t v = 0; v < kVectors; ++v) acc[c][v] = hn::Zero(D());
  }
  HWY_INLINE void Add(std::size_t chain, float value, const float* x) {
    const auto w = hn::Set(D(), value);
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v)
      acc[chain][v] = hn::MulAdd(w, hn::Load(D(), x + v * kLanes), acc[chain][v]);
  }
  // The values of the columns whose bits are set, from `value` on; x is the vector of the first column. Returns where the next
  // columns' values lie.
  HWY_INLINE const float* AddColumns(std::uint64_t bits, const float* value, const float* x) {
    const auto next = [&]() HWY_ATTR {
      const auto column = static_cast<std::size_t>(std::countr_zero(bits));
      bits &= bits - 1;
      return x + column * kTokens;
    };
    const auto count = static_cast<std::size_t>(std::popcount(bits));
    const float* const end = value + count;
    for (std::size_t i = count / kStep; i > 0; --i, value += kStep)
#pragma GCC unroll 4
      for (std::size_t j = 0; j < kStep; ++j) Add(j % kChains, value[j], next());
    for (; value < end; ++value) Add(0, *value, next());
    return end;
  }
  HWY_INLINE void Store(float* sums, bool accumulate) const {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v) {
      hn::Vec<D> sum = acc[0][v];
#pragma GCC unroll 4
      for (std::size_t c = 1; c < kChains; ++c) sum = hn::Add(sum, acc[c][v]);
      float* const to = sums + v * kLanes;
      hn::Store(accumulate ? hn::Add(hn::Load(D(), to), sum) : sum, D(), to);
    }
  }
};

// sums (+)= a row's values in some columns, times these. Returns how many they are.
template <std::size_t kTokens>
HWY_INLINE std::int64_t AddRow(const std::uint8_t* mask, std::int64_t mask_bytes, std::int64_t k,
                               std::int64_t columns, const float* HWY_RESTRICT value,
                               const float* HWY_RESTRICT panel, float* HWY_RESTRICT sums) {
  constexpr std::int64_t kWord = 64;
  const float* const first = value;
  TokenSums<kTokens> t;
  std::int64_t c = 0;
  if (HWY_LIKELY((k + columns) / 8 <= mask_bytes))
    for (; c + kWord <= columns; c += kWord) {
      std::uint64_t bits;
      std::memcpy(&bits, mask + (k + c) / 8, sizeof bits);
      value = t.AddColumns(bits, value, panel + static_cast<std::size_t>(c) * kTokens);
    }
  for (; c < columns; c += kSparseColumns)
    value = t.AddColumns(mask_bits(mask, mask_bytes, k + c), value,
                         panel + static_cast<std::size_t>(c) * kTokens);
  t.Store(sums, k > 0);
  return value - first;
}

// At most kPassingRows rows, for at most kTokens tokens.
template <DType kType, std::size_t kTokens>
HWY_NOINLINE void PassRows(const Weight& w, std::int64_t begin, std::int64_t rows, const float* x,
                           std::size_t x_stride, int tokens, float* sums, std::size_t sums_stride) {
  using Values = SparseValues<kType>;
  constexpr std::int64_t kColumns = kTurnedColumns<kTokens>;
  HWY_ALIGN float panel[static_cast<std::size_t>(kColumns) * kTokens];
  HWY_ALIGN float held[kPassingRows * kTokens];
  HWY_ALIGN float buffer[static_cast<std::size_t>(kColumns) + kSparseLanes];  // whole vectors are written
  std::int64_t next[kPassingRows];
  const ScaleGrid grid = Values::kScaled ? scale_grid(w.layout, w.quantization) : ScaleGrid{};
  const auto* const values = w.layout.template as<const std::uint8_t>();
  const auto* const mask = w.sparsity.mask.template as<const std::uint8_t>();
  const std::int64_t in = w.layout.dim(1), mask_stride = w.sparsity.mask.stride(0);
  const auto stored = static_cast<std::int64_t>(ShareStored(w) * static_cast<double>(kColumns)) + 1;
  const std::int64_t bytes = Values::Address(values, stored) - values;
  SparseRow<kType> row;
  row.GoOn(w, begin, 0);
  for (std::int64_t i = 0; i < rows; ++i) next[i] = first_value(w.layout, w.sparsity, begin + i);
  for (std::int64_t k = 0; k < in; k += kColumns) {
    const std::int64_t columns = std::min(kColumns, ceil_div(in - k, kSparseColumns) * kSparseColumns);
    TurnColumns<kTokens>(x + k, x_stride, tokens, columns, panel);
    for (std::int64_t i = 0; i < rows; ++i) {
      // Behind the last row, where the first goes on.
      const std::int64_t later = i + kRowsAhead,
                         ahead = std::min(later < rows ? later : later - rows, rows - 1);
      const auto* const from = Values::Address(values, next[ahead]);
      for (std::int64_t line = 0; line <= bytes; line += 64) __builtin_prefetch(from + line);
      __builtin_prefetch(mask + (begin + ahead) * mask_stride + k / 8);
      row.mask = mask + (begin + i) * mask_stride;
      row.at = next[i];
      const float* const value = RowValues<kType>(w, grid, row, begin + i, k, columns, buffer);
      next[i] += AddRow<kTokens>(row.mask, row.mask_bytes, k, columns, value, panel,
                                 held + static_cast<std::size_t>(i) * kTokens);
    }
  }
  for (int t = 0; t < tokens; ++t)
    for (std::int64_t i = 0; i < rows; ++i)
      sums[static_cast<std::size_t>(t) * sums_stride + static_cast<std::size_t>(i)] =
          held[static_cast<std::size_t>(i) * kTokens + static_cast<std::size_t>(t)];
}

// Whether an element of some tokens is an infinity or NaN, whose product with a 0 that is not stored would be NaN.
HWY_INLINE bool HasSpecials(const float* x, std::size_t stride, int tokens) {
  const F32Tag d;
  F32Vec none = hn::Zero(d);
  for (int t = 0; t < tokens; ++t, x += stride)
    for (std::size_t k = 0; k < stride; k += kSparseLanes)
      none = hn::MulAdd(hn::LoadU(d, x + k), hn::Zero(d), none);
  return !hn::AllTrue(d, hn::Eq(none, hn::Zero(d)));
}

// At most 16 tokens without such elements.
template <DType kType>
HWY_INLINE void SparseManyTokens(const Weight& w, std::int64_t begin, std::int64_t end, const float* x,
                                 std::size_t x_stride, int tokens, float* sums, std::size_t sums_stride) {
  for (; begin < end; begin += kPassingRows, sums += kPassingRows) {
    const std::int64_t rows = std::min(kPassingRows, end - begin);
    if (tokens <= 8)
      PassRows<kType, 8>(w, begin, rows, x, x_stride, tokens, sums, sums_stride);
    else
      PassRows<kType, 16>(w, begin, rows, x, x_stride, tokens, sums, sums_stride);
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
