#include "backends/cpu/linear/gemv/dot.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "backends/cpu/linear/gemv/int8.h"
#include "backends/cpu/linear/gemv/matrix.h"
#include "core/block_formats.h"
#include "core/quantized.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemv/dot.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/gemv/formats-inl.h"
#include "backends/cpu/linear/gemv/sparse.h"
#include "backends/cpu/linear/gemv/tiles-inl.h"
#include "backends/cpu/linear/operand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

void DotRows(const TensorView& weight, const Quantization& q, const GemvInput& input, std::int64_t begin,
             std::int64_t end, float* sums, std::size_t sums_stride) {
  const Rows w = rows_from(weight, input.in, begin);
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
      return dot(BlockNibbleFormat<false>(), halves, input.nibble_stride);
    case DType::q4_1:
      return dot(BlockNibbleFormat<true>(), halves, input.nibble_stride);
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

void fill_nibbles(const GemvInput& input, int t, std::int64_t begin, std::int64_t end) {
  for (const NibbleOrder order : {NibbleOrder::halves, NibbleOrder::neighbours}) {
    float* const nibbles = input.nibbles[static_cast<int>(order)];
    if (nibbles == nullptr) continue;
    if (HWY_DYNAMIC_DISPATCH(FillNibbles)(input.token(t),
                                          nibbles + static_cast<std::size_t>(t) * input.nibble_stride, order,
                                          static_cast<std::size_t>(begin), static_cast<std::size_t>(end)))
      std::atomic_ref<std::uint32_t>(*input.outsized).fetch_or(1u << t, std::memory_order_relaxed);
  }
}

void dot_rows(const Weight& all, const GemvInput& input, std::int64_t begin, std::int64_t end, float* sums,
              std::size_t sums_stride) {
  if (input.codes.rows != nullptr) return dot_int8_rows(all, input, begin, end, sums, sums_stride);
  if (all.sparsity.present()) return dot_sparse_rows(all, input, begin, end, sums, sums_stride);
  const TensorView& weight = all.layout;
  if (input.tiles != nullptr) return dot_rows_of_tiles(weight, input, begin, end, sums, sums_stride);
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
