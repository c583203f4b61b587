#include "backends/cpu/linear/small/dot.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/block_formats.h"
#include "core/quantized.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/small/dot.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/linear/small/formats-inl.h"
#include "backends/cpu/linear/small/scales-inl.h"
#include "backends/cpu/linear/small/sparse.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

// Several rows at a time, so that a vector of x serves several, and that the chains of additions overlap.
template <int kTokens>
inline constexpr int kRowsAtOnce = kTokens == 1 ? 4 : 2;

// One step of all rows and tokens: acc += weights * x. `w` has the rows' scales where they lie beside the weight.
template <class Format, int kTokens, int kRows>
HWY_INLINE void Step(Format (&w)[kRows], const std::uint8_t* const (&at)[kRows], const float* x,
                     std::size_t x_stride, F32Vec (&acc)[kRows][kTokens]) {
  const F32Tag d;
  F32Vec sum[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    w[r].Load(at[r]);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Format::kScaled ? hn::Zero(d) : acc[r][t];
  }
  for (std::size_t part = 0; part < Format::kParts; ++part) {
    if constexpr (Format::kParts > 1) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) w[r].StartPart(part);
    }
#pragma GCC unroll 8
    for (std::size_t v = 0; v < Format::kVectors; ++v) {
      F32Vec xv[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        xv[t] = hn::Load(d, x + t * x_stride + (part * Format::kVectors + v) * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const F32Vec wv = w[r].Get(v);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) sum[r][t] = hn::MulAdd(wv, xv[t], sum[r][t]);
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

// Walks rows step by step.
template <std::size_t kStepBytes, int kRows>
struct Cursor {
  using Padded = std::uint8_t[kRows][kStepBytes];

  const std::uint8_t* rows[kRows];
  std::size_t left;          // bytes of a row
  std::ptrdiff_t next_rows;  // bytes to the rows of the next tile

  HWY_INLINE Cursor(const Rows& w, std::size_t num_rows) : left(w.bytes), next_rows(kRows * w.stride) {
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
    // The hardware follows one stream of each core well, but not as many as rows at a time.
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      __builtin_prefetch(rows[r] + next_rows);
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

template <int kTokens, int kRows>
HWY_INLINE void StoreTile(const F32Vec (&acc)[kRows][kTokens], std::size_t num_rows, float* sums,
                          std::size_t sums_stride) {
  for (std::size_t r = 0; r < kRows && r < num_rows; ++r)
    for (std::size_t t = 0; t < kTokens; ++t)
      sums[t * sums_stride + r] = hn::GetLane(hn::SumOfLanes(F32Tag(), acc[r][t]));
}

template <class Format, int kTokens, int kRows = kRowsAtOnce<kTokens>>
HWY_NOINLINE void DotTile(const Rows& w, std::size_t num_rows, const float* x, std::size_t x_stride,
                          float* sums, std::size_t sums_stride) {
  Cursor<Format::kStepBytes, kRows> cursor(w, num_rows);
  alignas(64) typename Cursor<Format::kStepBytes, kRows>::Padded padded;
  F32Vec acc[kRows][kTokens];
  Clear(acc);
  for (; cursor.left > 0; x += Format::kInputFloats) {
    const std::uint8_t* at[kRows];
    cursor.Next(padded, at);
    Format formats[kRows];
    Step<Format, kTokens, kRows>(formats, at, x, x_stride, acc);
  }
  StoreTile(acc, num_rows, sums, sums_stride);
}

template <class Format, int kTokens>
void DotTokens(const Rows& w, std::size_t num_rows, const float* x, std::size_t x_stride, float* sums,
               std::size_t sums_stride) {
  constexpr std::size_t kRows = kRowsAtOnce<kTokens>;
  for (std::size_t r = 0; r < num_rows; r += kRows)
    DotTile<Format, kTokens>({w.first + static_cast<std::ptrdiff_t>(r) * w.stride, w.stride, w.bytes},
                             std::min(kRows, num_rows - r), x, x_stride, sums + r, sums_stride);
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
template <class Format, int kTokens, int kGroups, int kRows = kRowsAtOnce<kTokens>>
HWY_NOINLINE void ScaledTile(const Rows& w, const Quantization& q, const ScaleGrid& grid, std::int64_t row,
                             std::size_t num_rows, const float* x, std::size_t x_stride, float* sums,
                             std::size_t sums_stride) {
  alignas(64) float scales[kRows][kScalesHeld];
  alignas(64) float zeros[kRows][kScalesHeld];
  Cursor<Format::kStepBytes, kRows> cursor(w, num_rows);
  alignas(64) typename Cursor<Format::kStepBytes, kRows>::Padded padded;
  F32Vec acc[kRows][kTokens];
  Clear(acc);
  const std::size_t group_bytes =
      (static_cast<std::size_t>(grid.columns) + Format::kElemsPerByte - 1) / Format::kElemsPerByte;
  const auto groups = static_cast<std::int64_t>((w.bytes + group_bytes - 1) / group_bytes);
  for (std::int64_t first = 0; first < groups; first += kMaxGroups) {
    const std::int64_t count = std::min(kMaxGroups, groups - first);
    for (std::int64_t r = 0; r < kRows; ++r)
      LoadScales(q, grid, row + std::min(r, static_cast<std::int64_t>(num_rows) - 1), first, count, scales[r],
                 zeros[r]);
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
        Step<Format, kTokens, kRows>(formats, at, x, x_stride, acc);
      }
    }
  }
  StoreTile(acc, num_rows, sums, sums_stride);
}

// Rows [begin, begin + num_rows) of a weight with scales beside it.
template <class Format, int kGroups>
void DotScaled(const TensorView& weight, const Quantization& q, const Rows& w, std::int64_t begin,
               std::size_t num_rows, const float* x, std::size_t x_stride, int num_tokens, float* sums,
               std::size_t sums_stride) {
  const ScaleGrid grid = scale_grid(weight, q);
  const auto tokens = [&]<int kTokens>(std::integral_constant<int, kTokens>) HWY_ATTR {
    constexpr std::size_t kRows = kRowsAtOnce<kTokens>;
    for (std::size_t r = 0; r < num_rows; r += kRows)
      ScaledTile<Format, kTokens, kGroups>(
          {w.first + static_cast<std::ptrdiff_t>(r) * w.stride, w.stride, w.bytes}, q, grid,
          begin + static_cast<std::int64_t>(r), std::min(kRows, num_rows - r), x, x_stride, sums + r,
          sums_stride);
  };
  for (; num_tokens >= 4; num_tokens -= 4, x += 4 * x_stride, sums += 4 * sums_stride)
    tokens(std::integral_constant<int, 4>());
  if (num_tokens == 3) tokens(std::integral_constant<int, 3>());
  if (num_tokens == 2) tokens(std::integral_constant<int, 2>());
  if (num_tokens == 1) tokens(std::integral_constant<int, 1>());
}

void DotRows(const TensorView& weight, const Quantization& q, const SmallInput& input, std::int64_t begin,
             std::int64_t end, float* sums, std::size_t sums_stride) {
  const DTypeInfo& info = dtype_info(weight.dtype);
  const std::int64_t stride = weight.stride(0) / info.block_elems * info.block_bytes;
  const std::int64_t bytes = input.in / info.block_elems * info.block_bytes;
  const Rows w{weight.as<const std::uint8_t>() + begin * stride, stride, static_cast<std::size_t>(bytes)};
  const std::size_t num_rows = static_cast<std::size_t>(end - begin);
  const float* const halves = input.nibbles[static_cast<int>(NibbleOrder::halves)];
  const float* const neighbours = input.nibbles[static_cast<int>(NibbleOrder::neighbours)];
  const auto dot = [&](auto format, const float* x, std::size_t x_stride) {
    DotAll<decltype(format)>(w, num_rows, x, x_stride, input.num_tokens, sums, sums_stride);
  };
  const auto scaled = [&]<class Format, int kGroups = 1>(Format, const float* x, std::size_t x_stride,
                                                         std::integral_constant<int, kGroups> = {}) {
    DotScaled<Format, kGroups>(weight, q, w, begin, num_rows, x, x_stride, input.num_tokens, sums,
                               sums_stride);
  };
  switch (weight.dtype) {
    case DType::f32:
      return dot(PlainFormat<float>(), input.values, input.value_stride);
    case DType::f16:
      return dot(PlainFormat<F16>(), input.values, input.value_stride);
    case DType::bf16:
      return dot(PlainFormat<Bf16>(), input.values, input.value_stride);
    case DType::q5_0:
      return dot(Q5Format(), input.values, input.value_stride);
    case DType::q8_0:
      return dot(Q8Format(), input.values, input.value_stride);
    case DType::q4_k:
      return dot(Q4KFormat(), input.values, input.value_stride);
    case DType::q6_k:
      return dot(Q6KFormat(), input.values, input.value_stride);
    case DType::q4_0:
      return dot(NibbleFormat<false>(), halves, input.nibble_stride);
    case DType::q4_1:
      return dot(NibbleFormat<true>(), halves, input.nibble_stride);
    case DType::i8:
      return scaled(ByteFormat<DType::i8>(), input.values, input.value_stride);
    case DType::fp8_e4m3:
      return scaled(ByteFormat<DType::fp8_e4m3>(), input.values, input.value_stride);
    case DType::fp8_e5m2:
      return scaled(ByteFormat<DType::fp8_e5m2>(), input.values, input.value_stride);
    case DType::int4: {
      // Groups of 32 and 64 may be parts of a step.
      constexpr int kOf32 = Int4Format::kStepElems / 32, kOf64 = std::max(1, kOf32 / 2);
      if (q.group_size == 32)
        return scaled(Int4Format(), neighbours, input.nibble_stride, std::integral_constant<int, kOf32>());
      if (q.group_size == 64)
        return scaled(Int4Format(), neighbours, input.nibble_stride, std::integral_constant<int, kOf64>());
      return scaled(Int4Format(), neighbours, input.nibble_stride);
    }
    default:
      break;
  }
}

std::int64_t NibbleUnit() { return NibbleWords::kStepElems; }

std::size_t NibbleFloats(std::int64_t in) {
  using Format = NibbleWords;
  return (static_cast<std::size_t>(in) + Format::kStepElems - 1) / Format::kStepElems * Format::kInputFloats;
}

// Values [begin, end) in the order of nibbles; whether some were left out as too large.
bool FillNibbles(const float* values, float* nibbles, NibbleOrder order, std::size_t begin, std::size_t end) {
  using Format = NibbleWords;
  using D4 = hn::CappedTag<float, 4>;
  using V4 = hn::Vec<D4>;
  const D4 d;
  const V4 limit = hn::Set(d, kOutsized);
  constexpr std::size_t kBlocksPerStep = kLanes / 4;
  V4 largest = hn::Zero(d);
  end = (end + Format::kStepElems - 1) / Format::kStepElems * Format::kStepElems;
  for (std::size_t i = begin; i < end; i += 32) {
    const std::size_t block = i / 32;
    float* out = nibbles + block / kBlocksPerStep * Format::kInputFloats + block % kBlocksPerStep * 4;
    V4 first[4], second[4],
        v[8];  // of either half of the block, elements 4 j + p of [p]; then of nibble n those of [n]
    hn::LoadInterleaved4(d, values + i, first[0], first[1], first[2], first[3]);
    hn::LoadInterleaved4(d, values + i + 16, second[0], second[1], second[2], second[3]);
    for (std::size_t p = 0; p < 4; ++p) {
      if (order == NibbleOrder::halves) {  // nibbles 2 p and 2 p + 1 of word j are 4 j + p of the two halves
        v[2 * p] = first[p];
        v[2 * p + 1] = second[p];
      } else {  // nibble n of word j is element 8 j + n
        v[p] = hn::ConcatEven(d, second[p], first[p]);
        v[p + 4] = hn::ConcatOdd(d, second[p], first[p]);
      }
    }
    V4 sum = hn::Zero(d);
    float scale = 1.0f;
    for (std::size_t n = 0; n < 8; ++n) {
      const V4 size = hn::Abs(v[n]);
      largest = hn::Max(largest, hn::IfThenElseZero(hn::Ge(size, limit), size));
      const V4 kept = hn::IfThenZeroElse(hn::Ge(size, limit), v[n]);
      sum = hn::Add(sum, kept);
      hn::Store(hn::Mul(kept, hn::Set(d, scale)), d, out + n * kLanes);
      scale = n == 3 ? 1.0f : scale * 0.0625f;
    }
    hn::Store(sum, d, out + 8 * kLanes);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest)) > 0;
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(DotRows);
HWY_EXPORT(NibbleFloats);
HWY_EXPORT(NibbleUnit);
HWY_EXPORT(FillNibbles);
namespace {

// An element of a weight with nibbles, decoded as the reference decodes it.
float decode_element(const TensorView& weight, const Quantization& q, std::int64_t row, std::int64_t k) {
  if (needs_scales(weight.dtype)) return dequantize_element(weight, q, row, k);
  constexpr std::int64_t kElems = 32;
  float block[kElems];
  dequantize_blocks(weight.dtype, weight.at(row * weight.stride(0) + k), block, kElems);
  return block[k % kElems];
}

// Adds what the outsized elements of x contribute.
void add_outsized(const TensorView& weight, const Quantization& q, const float* x, std::int64_t in,
                  std::int64_t begin, std::int64_t end, float* sums) {
  for (std::int64_t k = 0; k < in; ++k) {
    if (!(std::abs(x[k]) >= kOutsized)) continue;
    for (std::int64_t r = begin; r < end; ++r) sums[r - begin] += decode_element(weight, q, r, k) * x[k];
  }
}

}  // namespace

std::size_t value_stride(std::int64_t in) {
  constexpr std::int64_t kWhole = 128;  // a step of the widest vectors, for all formats
  return static_cast<std::size_t>((in + kWhole - 1) / kWhole * kWhole);
}

std::size_t nibble_stride(std::int64_t in) { return HWY_DYNAMIC_DISPATCH(NibbleFloats)(in); }

std::int64_t nibble_unit() { return HWY_DYNAMIC_DISPATCH(NibbleUnit)(); }

void fill_nibbles(const SmallInput& input, int t, std::int64_t begin, std::int64_t end) {
  for (const NibbleOrder order : {NibbleOrder::halves, NibbleOrder::neighbours}) {
    float* const nibbles = input.nibbles[static_cast<int>(order)];
    if (nibbles == nullptr) continue;
    if (HWY_DYNAMIC_DISPATCH(FillNibbles)(input.token(t),
                                          nibbles + static_cast<std::size_t>(t) * input.nibble_stride, order,
                                          static_cast<std::size_t>(begin), static_cast<std::size_t>(end)))
      std::atomic_ref<std::uint32_t>(*input.outsized).fetch_or(1u << t, std::memory_order_relaxed);
  }
}

void dot_rows(const Weight& all, const SmallInput& input, std::int64_t begin, std::int64_t end, float* sums,
              std::size_t sums_stride) {
  if (all.sparsity.present()) return dot_sparse_rows(all, input, begin, end, sums, sums_stride);
  const TensorView& weight = all.layout;
  const Quantization& quantization = all.quantization;
  HWY_DYNAMIC_DISPATCH(DotRows)(weight, quantization, input, begin, end, sums, sums_stride);
  const bool nibbles =
      has_nibbles(weight.dtype, NibbleOrder::halves) || has_nibbles(weight.dtype, NibbleOrder::neighbours);
  if (!nibbles || *input.outsized == 0) return;
  for (int t = 0; t < input.num_tokens; ++t)
    if (*input.outsized >> t & 1)
      add_outsized(weight, quantization, input.token(t), input.in, begin, end,
                   sums + static_cast<std::size_t>(t) * sums_stride);
}

}  // namespace kf::cpu
#endif
