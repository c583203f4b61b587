// Tiles of dot products: some rows of a weight by some tokens, walked in the steps of a format (formats-inl.h).
#if defined(KF_CPU_LINEAR_GEMV_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMV_TILES_INL_H_
#undef KF_CPU_LINEAR_GEMV_TILES_INL_H_
#else
#define KF_CPU_LINEAR_GEMV_TILES_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "backends/cpu/linear/gemv/formats-inl.h"
#include "backends/cpu/linear/gemv/scales-inl.h"
#include "backends/cpu/simd/sums-inl.h"
#include "core/quantized.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86;

// Several rows at a time, so that a vector of x serves several, and that the chains of additions overlap: four where their sums and
// what a format keeps of each fit the registers.
template <class Format, int kTokens>
inline constexpr int kRowsAtOnce = kTokens == 1 || (kManyRegisters && Format::kVectors == 1) ? 4 : 2;

// One step of all rows and tokens: acc += weights * x, products summed as the format sums them. `w` has the rows' scales where they lie beside the weight.
// `bytes`: of a row, where kPart.
template <bool kPart = false, class Format, int kTokens, int kRows>
HWY_INLINE void Step(Format (&w)[kRows], const std::uint8_t* const (&at)[kRows], const float* x,
                     std::size_t x_stride, F32Vec (&acc)[kRows][kTokens], std::size_t bytes = 0) {
  typename Format::Sum sum[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if constexpr (kPart)
      w[r].LoadPart(at[r], bytes);
    else
      w[r].Load(at[r]);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      if constexpr (Format::kScaled)
        sum[r][t] = Format::Start(x + t * x_stride + Format::kVectors * kLanes);
      else
        sum[r][t] = acc[r][t];
    }
  }
  for (std::size_t part = 0; part < Format::kParts; ++part) {
    if constexpr (Format::kParts > 1) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) w[r].StartPart(part);
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < Format::kVectors; ++v) {
      typename Format::Input xv[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        xv[t] = Format::LoadInput(x + t * x_stride + (part * Format::kVectors + v) * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const auto wv = w[r].Get(v);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) sum[r][t] = Format::MulAdd(wv, xv[t], sum[r][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if constexpr (Format::kScaled) w[r].LoadScales();
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      if constexpr (Format::kScaled) {
        acc[r][t] = w[r].Close(sum[r][t], x + t * x_stride + Format::kVectors * kLanes, acc[r][t]);
      } else {
        acc[r][t] = sum[r][t];
      }
    }
  }
}

struct Rows {
  const std::uint8_t* first;
  std::ptrdiff_t stride;  // bytes
  std::size_t bytes;      // of a row
};
// Those of a weight from row `begin` on.
inline Rows rows_from(const TensorView& weight, std::int64_t in, std::int64_t begin) {
  const DTypeInfo& info = dtype_info(weight.dtype);
  const std::int64_t stride = weight.stride(0) / info.block_elems * info.block_bytes;
  const std::int64_t bytes = in / info.block_elems * info.block_bytes;
  return {weight.as<const std::uint8_t>() + begin * stride, stride, static_cast<std::size_t>(bytes)};
}

// Rows of a weight, cut into tiles of up to kRows. A tile's rows are far apart, each the next one of a stream of its own:
// hardware follows several streams well, but not neighbouring rows, of which a page holds several, read side by side.
template <int kRows>
struct Tiling {
  Rows all;
  std::size_t num_rows, num_tiles;  // of which a tile's rows are each this many after the one before

  Tiling(const Rows& w, std::size_t n) : all(w), num_rows(n), num_tiles((n + kRows - 1) / kRows) {}
  Rows rows(std::size_t tile) const {
    return {all.first + static_cast<std::ptrdiff_t>(tile) * all.stride,
            static_cast<std::ptrdiff_t>(num_tiles) * all.stride, all.bytes};
  }
  std::size_t rows_in(std::size_t tile) const { return (num_rows - tile + num_tiles - 1) / num_tiles; }
};

// How far ahead of a stream bytes are asked for, into the second-level cache: the first holds few requests, behind which loads
// would wait. Within a page hardware fetches ahead by itself. Where little is done with a byte, as in f32, it is faster left
// alone there, and only the first lines of the page that follows are asked for.
inline constexpr std::size_t kFetchAhead = 2048, kFetchOverPages = 1024;
inline constexpr std::size_t kSmallPage = 4096, kFirstLines = 512;

template <bool kAll>
HWY_INLINE void FetchAhead(const std::uint8_t* from, std::size_t bytes) {
  constexpr std::size_t kAhead = kAll ? kFetchAhead : kFetchOverPages;
  if (!kAll && (reinterpret_cast<std::uintptr_t>(from) + kAhead) % kSmallPage >= kFirstLines) return;
  for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + kAhead + line, 0, 2);
}

// Walks rows step by step.
template <class Format, int kRows>
struct Cursor {
  static constexpr std::size_t kStepBytes = Format::kStepBytes;
  using Padded = std::uint8_t[kRows][kStepBytes];

  const std::uint8_t* rows[kRows];
  std::size_t left;  // bytes of a row

  HWY_INLINE Cursor(const Rows& w, std::size_t num_rows) : left(w.bytes) {
    // Rows that are not there are read as the last one and dropped.
    for (std::size_t r = 0; r < kRows; ++r)
      rows[r] = w.first + static_cast<std::ptrdiff_t>(std::min(r, num_rows - 1)) * w.stride;
  }
  // Where the next step of each row is read. A short one is padded with zero bytes: they meet the zeros behind x.
  HWY_INLINE void Next(Padded& padded, const std::uint8_t* (&at)[kRows]) {
    if (left < kStepBytes) {
      std::memset(padded, 0, sizeof padded);
      for (int r = 0; r < kRows; ++r) {
        std::memcpy(padded[r], rows[r], left);
        at[r] = padded[r];
      }
      left = 0;
      return;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      FetchAhead<Format::kFetchesAll>(rows[r], kStepBytes);
      at[r] = rows[r];
      rows[r] += kStepBytes;
    }
    left -= kStepBytes;
  }
};

template <int kTokens, int kRows>
HWY_INLINE void Clear(F32Vec (&acc)[kRows][kTokens]) {
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) acc[r][t] = hn::Zero(F32Tag());
}

// kTogether: the lanes of four vectors are summed together, in another order than those of one.
template <bool kTogether = false, int kTokens, int kRows>
HWY_INLINE void StoreTile(const F32Vec (&acc)[kRows][kTokens], std::size_t num_rows, std::size_t row_step,
                          float* sums, std::size_t sums_stride) {
  // All of them by constant indices: one that is not, and the compiler keeps `acc` in memory.
  HWY_ALIGN float lanes[kRows][kTokens];
  if constexpr (kTogether && hn::MaxLanes(F32Tag()) >= 4 && kRows * kTokens % 4 == 0) {
    const auto at = [&](int i) HWY_ATTR { return acc[i / kTokens][i % kTokens]; };
#pragma GCC unroll 4
    for (int i = 0; i < kRows * kTokens; i += 4)
      StoreLaneSums(F32Tag(), at(i), at(i + 1), at(i + 2), at(i + 3), lanes[0] + i);
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) lanes[r][t] = hn::GetLane(hn::SumOfLanes(F32Tag(), acc[r][t]));
  }
  for (std::size_t r = 0; r < kRows && r < num_rows; ++r)
    for (std::size_t t = 0; t < kTokens; ++t) sums[t * sums_stride + r * row_step] = lanes[r][t];
}

// A chain of additions ends after so many and is added to the total: the error of a sum of n is then as of chains of this
// and of n / this, and not as of n.
inline constexpr std::size_t kMaxChain = 96;

template <class Format, int kTokens, int kRows = kRowsAtOnce<Format, kTokens>>
HWY_NOINLINE void DotTile(const Rows& w, std::size_t num_rows, std::size_t row_step, const float* x,
                          std::size_t x_stride, float* sums, std::size_t sums_stride) {
  Cursor<Format, kRows> cursor(w, num_rows);
  alignas(64) typename Cursor<Format, kRows>::Padded padded;
  F32Vec total[kRows][kTokens];
  Clear(total);
  const auto add_steps = [&](F32Vec(&acc)[kRows][kTokens], std::size_t steps) HWY_ATTR {
    for (; cursor.left > 0 && steps > 0; x += Format::kInputFloats, --steps) {
      const std::uint8_t* at[kRows];
      Format formats[kRows];
      if constexpr (Format::kLoadsPart) {
        if (cursor.left < Format::kStepBytes) {
          Step<true>(formats, cursor.rows, x, x_stride, acc, std::exchange(cursor.left, 0));
          return;
        }
      }
      cursor.Next(padded, at);
      Step(formats, at, x, x_stride, acc);
    }
  };
  if constexpr (Format::kScaled) {  // the sum of a step is a chain of its own
    add_steps(total, std::numeric_limits<std::size_t>::max());
  } else {
    constexpr std::size_t kSteps = kMaxChain / (Format::kParts * Format::kVectors);
    // Of one token a second copy of the loop costs more than the first chain's addition does.
    if constexpr (kTokens > 1) add_steps(total, kSteps);
    while (cursor.left > 0) {
      F32Vec acc[kRows][kTokens];
      Clear(acc);
      add_steps(acc, kSteps);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) total[r][t] = hn::Add(total[r][t], acc[r][t]);
    }
  }
  // Of one token the sums wait for each other less when each is taken by itself. Codes of x keep their order whatever the tokens.
  StoreTile<(kTokens > 1 && Format::kVectors == 1)>(total, num_rows, row_step, sums, sums_stride);
}

template <class Format, int kTokens>
void DotTokens(const Rows& w, std::size_t num_rows, const float* x, std::size_t x_stride, float* sums,
               std::size_t sums_stride) {
  const Tiling<kRowsAtOnce<Format, kTokens>> tiling(w, num_rows);
  for (std::size_t tile = 0; tile < tiling.num_tiles; ++tile)
    DotTile<Format, kTokens>(tiling.rows(tile), tiling.rows_in(tile), tiling.num_tiles, x, x_stride,
                             sums + tile, sums_stride);
}

// Groups of four tokens, then the rest.
template <class Format>
void DotAll(const Rows& w, std::size_t num_rows, const float* x, std::size_t x_stride, int num_tokens,
            float* sums, std::size_t sums_stride) {
  for (; num_tokens >= 4; num_tokens -= 4, x += 4 * x_stride, sums += 4 * sums_stride)
    DotTokens<Format, 4>(w, num_rows, x, x_stride, sums, sums_stride);
  if (num_tokens == 3) DotTokens<Format, 3>(w, num_rows, x, x_stride, sums, sums_stride);
  if (num_tokens == 2) DotTokens<Format, 2>(w, num_rows, x, x_stride, sums, sums_stride);
  if (num_tokens == 1) DotTokens<Format, 1>(w, num_rows, x, x_stride, sums, sums_stride);
}

// kGroups numbers in equal parts of a vector.
template <int kGroups, class D>
HWY_INLINE hn::Vec<D> SpreadGroups(D d, const float* p) {
  if constexpr (kGroups == 1) {
    return hn::Set(d, *p);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, SpreadGroups<kGroups / 2>(half, p + kGroups / 2),
                       SpreadGroups<kGroups / 2>(half, p));
  }
}

// As DotTile, where a step has kGroups groups, or with kGroups 1 a group has one or more steps. `row` is the first.
template <class Format, int kTokens, int kGroups, int kRows = kRowsAtOnce<Format, kTokens>>
HWY_NOINLINE void ScaledTile(const Rows& w, const Quantization& q, const ScaleGrid& grid, std::int64_t row,
                             std::size_t num_rows, std::size_t row_step, const float* x, std::size_t x_stride,
                             float* sums, std::size_t sums_stride) {
  alignas(64) float scales[kRows][kScalesHeld];
  alignas(64) float zeros[kRows][kScalesHeld];
  Cursor<Format, kRows> cursor(w, num_rows);
  alignas(64) typename Cursor<Format, kRows>::Padded padded;
  F32Vec acc[kRows][kTokens];
  Clear(acc);
  const std::size_t group_bytes =
      (static_cast<std::size_t>(grid.columns) + Format::kElemsPerByte - 1) / Format::kElemsPerByte;
  const auto groups = static_cast<std::int64_t>((w.bytes + group_bytes - 1) / group_bytes);
  for (std::int64_t first = 0; first < groups; first += kMaxGroups) {
    const std::int64_t count = std::min(kMaxGroups, groups - first);
    for (std::size_t r = 0; r < kRows; ++r)
      LoadScales(q, grid, row + static_cast<std::int64_t>(std::min(r, num_rows - 1) * row_step), first, count,
                 scales[r], zeros[r]);
    for (std::int64_t group = 0; group < count; group += kGroups) {
      Format formats[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        formats[r].SetScales(SpreadGroups<kGroups>(F32Tag(), scales[r] + group),
                             SpreadGroups<kGroups>(F32Tag(), zeros[r] + group));
      // Steps divide groups, or groups steps: only the last may be short.
      const std::size_t end =
          std::min(w.bytes, static_cast<std::size_t>(first + group + kGroups) * group_bytes);
      for (; cursor.left > w.bytes - end; x += Format::kInputFloats) {
        const std::uint8_t* at[kRows];
        cursor.Next(padded, at);
        Step(formats, at, x, x_stride, acc);
      }
    }
  }
  StoreTile(acc, num_rows, row_step, sums, sums_stride);
}

// Rows [begin, begin + num_rows) of a weight with scales beside it.
template <class Format, int kGroups>
void DotScaled(const TensorView& weight, const Quantization& q, const Rows& w, std::int64_t begin,
               std::size_t num_rows, const float* x, std::size_t x_stride, int num_tokens, float* sums,
               std::size_t sums_stride) {
  const ScaleGrid grid = scale_grid(weight, q);
  const auto tokens = [&]<int kTokens>(std::integral_constant<int, kTokens>) HWY_ATTR {
    const Tiling<kRowsAtOnce<Format, kTokens>> tiling(w, num_rows);
    for (std::size_t tile = 0; tile < tiling.num_tiles; ++tile)
      ScaledTile<Format, kTokens, kGroups>(tiling.rows(tile), q, grid,
                                           begin + static_cast<std::int64_t>(tile), tiling.rows_in(tile),
                                           tiling.num_tiles, x, x_stride, sums + tile, sums_stride);
  };
  for (; num_tokens >= 4; num_tokens -= 4, x += 4 * x_stride, sums += 4 * sums_stride)
    tokens(std::integral_constant<int, 4>());
  if (num_tokens == 3) tokens(std::integral_constant<int, 3>());
  if (num_tokens == 2) tokens(std::integral_constant<int, 2>());
  if (num_tokens == 1) tokens(std::integral_constant<int, 1>());
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
