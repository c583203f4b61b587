#include "backends/cpu/linear/small/dot.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/block_formats.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/small/dot.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/small/formats-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

// Several rows at a time, so that a vector of x serves several, and that the chains of additions overlap.
template <int kTokens>
inline constexpr int kRowsAtOnce = kTokens == 1 ? 4 : 2;

// One step of all rows and tokens: acc += weights * x.
template <class Format, int kTokens, int kRows>
HWY_INLINE void Step(const std::uint8_t* const (&rows)[kRows], std::size_t offset, const float* x,
                     std::size_t x_stride, F32Vec (&acc)[kRows][kTokens]) {
  const F32Tag d;
  Format w[kRows];
  F32Vec sum[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    w[r].Load(rows[r] + offset);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Format::kScaled ? hn::Zero(d) : acc[r][t];
  }
#pragma GCC unroll 8
  for (std::size_t v = 0; v < Format::kVectors; ++v) {
    F32Vec xv[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) xv[t] = hn::Load(d, x + t * x_stride + v * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32Vec wv = w[r].Get(v);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sum[r][t] = hn::MulAdd(wv, xv[t], sum[r][t]);
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

template <class Format, int kTokens, int kRows = kRowsAtOnce<kTokens>>
HWY_NOINLINE void DotTile(const Rows& w, std::size_t num_rows, const float* x, std::size_t x_stride,
                          float* sums, std::size_t sums_stride) {
  const F32Tag d;
  const std::uint8_t* rows[kRows];
  // Rows that are not there are read as the last one and dropped.
  for (std::size_t r = 0; r < kRows; ++r)
    rows[r] = w.first + static_cast<std::ptrdiff_t>(std::min(r, num_rows - 1)) * w.stride;
  F32Vec acc[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) acc[r][t] = hn::Zero(d);

  // The hardware follows one stream of each core well, but not as many as rows at a time.
  const std::ptrdiff_t next_rows = kRows * w.stride;
  std::size_t offset = 0;
  for (; offset + Format::kStepBytes <= w.bytes; offset += Format::kStepBytes, x += Format::kInputFloats) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) __builtin_prefetch(rows[r] + offset + next_rows);
    Step<Format, kTokens, kRows>(rows, offset, x, x_stride, acc);
  }
  // What is left is padded with zero bytes, which are zeros in every format.
  if (const std::size_t left = w.bytes - offset; left > 0) {
    alignas(64) std::uint8_t padded[kRows][Format::kStepBytes] = {};
    const std::uint8_t* padded_rows[kRows];
    for (int r = 0; r < kRows; ++r) {
      std::memcpy(padded[r], rows[r] + offset, left);
      padded_rows[r] = padded[r];
    }
    Step<Format, kTokens, kRows>(padded_rows, 0, x, x_stride, acc);
  }
  for (std::size_t r = 0; r < kRows && r < num_rows; ++r)
    for (std::size_t t = 0; t < kTokens; ++t)
      sums[t * sums_stride + r] = hn::GetLane(hn::SumOfLanes(d, acc[r][t]));
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

void DotRows(const TensorView& weight, const SmallInput& input, std::int64_t begin, std::int64_t end,
             float* sums, std::size_t sums_stride) {
  const DTypeInfo& info = dtype_info(weight.dtype);
  const std::int64_t stride = weight.stride(0) / info.block_elems * info.block_bytes;
  const std::int64_t bytes = input.in / info.block_elems * info.block_bytes;
  const Rows w{weight.as<const std::uint8_t>() + begin * stride, stride, static_cast<std::size_t>(bytes)};
  const std::size_t num_rows = static_cast<std::size_t>(end - begin);
  const auto dot = [&](auto format, const float* x, std::size_t x_stride) {
    DotAll<decltype(format)>(w, num_rows, x, x_stride, input.num_tokens, sums, sums_stride);
  };
  switch (weight.dtype) {
    case DType::f32:
      return dot(PlainFormat<float>(), input.values, input.value_stride);
    case DType::f16:
      return dot(PlainFormat<F16>(), input.values, input.value_stride);
    case DType::bf16:
      return dot(PlainFormat<Bf16>(), input.values, input.value_stride);
    case DType::q8_0:
      return dot(Q8Format(), input.values, input.value_stride);
    case DType::q4_0:
      return dot(NibbleFormat<false>(), input.nibbles, input.nibble_stride);
    case DType::q4_1:
      return dot(NibbleFormat<true>(), input.nibbles, input.nibble_stride);
    default:
      break;
  }
}

std::int64_t NibbleUnit() { return NibbleFormat<true>::kStepElems; }

std::size_t NibbleFloats(std::int64_t in) {
  using Format = NibbleFormat<true>;
  return (static_cast<std::size_t>(in) + Format::kStepElems - 1) / Format::kStepElems * Format::kInputFloats;
}

// Values [begin, end) in the order of NibbleFormat; whether some were left out as too large.
bool FillNibbles(const float* values, float* nibbles, std::size_t begin, std::size_t end) {
  using Format = NibbleFormat<true>;
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
    V4 v[8];  // nibble 2 p of word j is element 4 j + p of the block's first half, nibble 2 p + 1 that of the
              // second
    hn::LoadInterleaved4(d, values + i, v[0], v[2], v[4], v[6]);
    hn::LoadInterleaved4(d, values + i + 16, v[1], v[3], v[5], v[7]);
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

// Adds what the outsized elements of x contribute, with weights decoded as the reference decodes them.
void add_outsized(const TensorView& weight, const float* x, std::int64_t in, std::int64_t begin,
                  std::int64_t end, float* sums) {
  float block[kBlockElems];
  for (std::int64_t k = 0; k < in; ++k) {
    if (!(std::abs(x[k]) >= kOutsized)) continue;
    for (std::int64_t r = begin; r < end; ++r) {
      dequantize_blocks(weight.dtype, weight.at(r * weight.stride(0) + k / kBlockElems * kBlockElems), block,
                        kBlockElems);
      sums[r - begin] += block[k % kBlockElems] * x[k];
    }
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
  if (HWY_DYNAMIC_DISPATCH(FillNibbles)(input.token(t), input.nibble_token(t),
                                        static_cast<std::size_t>(begin), static_cast<std::size_t>(end)))
    std::atomic_ref<std::uint32_t>(*input.outsized).fetch_or(1u << t, std::memory_order_relaxed);
}

void dot_rows(const TensorView& weight, const SmallInput& input, std::int64_t begin, std::int64_t end,
              float* sums, std::size_t sums_stride) {
  HWY_DYNAMIC_DISPATCH(DotRows)(weight, input, begin, end, sums, sums_stride);
  if (!has_nibbles(weight.dtype) || *input.outsized == 0) return;
  for (int t = 0; t < input.num_tokens; ++t)
    if (*input.outsized >> t & 1)
      add_outsized(weight, input.token(t), input.in, begin, end,
                   sums + static_cast<std::size_t>(t) * sums_stride);
}

}  // namespace kf::cpu
#endif
