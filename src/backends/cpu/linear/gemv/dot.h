// Dot products of few tokens with the rows of a weight as it lies in memory: what decoding a token is made
// of. The rows are streamed once; block formats are decoded in registers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/sparse.h"
#include "kf/ops/quantization.h"

namespace kf::cpu {

// How eight nibbles of a word follow from the elements of 32: q4_0 and q4_1 hold one of the first half beside one of the
// second, int4 holds neighbours.
enum class NibbleOrder : std::uint8_t { halves, neighbours };
inline constexpr int kNumNibbleOrders = 2;
inline bool has_nibbles(DType dtype, NibbleOrder order) {
  if (order == NibbleOrder::neighbours) return dtype == DType::int4;
  return dtype == DType::q4_0 || dtype == DType::q4_1;
}

// How codes of x are laid out, step by step of a weight's (int8.cpp): i8 with a scale a row, with one for 128 or more, q8_0
// and i8 with one for fewer, and the two orders of nibbles.
enum class CodeOrder : std::uint8_t { row, group, block, halves, neighbours, none };
inline constexpr int kNumCodeOrders = static_cast<int>(CodeOrder::none);

// x in 8 bits, where a call asks for it (InputQuantization).
struct GemvCodes {
  std::int8_t* rows =
      nullptr;  // [num_tokens][row_stride], zeros behind the last feature; null: x is not quantized
  std::size_t row_stride = 0;
  float* scales = nullptr;  // [num_tokens]
  // [num_tokens][strides] for each CodeOrder: of a step the codes, then for every lane of 32 bits the sum of its codes,
  // times what is added to those of the weight, negative. Addressed as floats. Null where no weight has this order.
  float* forms[kNumCodeOrders] = {};
  std::size_t strides[kNumCodeOrders] = {};
};

// The activations of a call in f32, in the forms that the dot products read.
struct GemvInput {
  std::int64_t in = 0;  // features
  int num_tokens = 0;
  // [num_tokens][value_stride], zeros behind the last feature.
  float* values = nullptr;
  std::size_t value_stride = 0;
  // [num_tokens][nibble_stride]: in the order in which nibbles are unpacked, one form for each NibbleOrder. Null where
  // no weight has such nibbles.
  float* nibbles[kNumNibbleOrders] = {};
  std::size_t nibble_stride = 0;
  // Which tokens (as bits) have outsized elements. These are left out of `nibbles`; what they contribute is
  // added one by one.
  std::uint32_t* outsized = nullptr;
  GemvCodes codes;  // then there are no nibbles
  // [step][piece][pair][16 tokens][2], bf16: x as the matrix units take it (matrix.h). Null where vectors multiply.
  char* tiles = nullptr;
  int pieces = 0;

  // Some of the tokens, where x is quantized.
  GemvInput tokens(int first, int count) const {
    GemvInput some = *this;
    const auto skip = static_cast<std::size_t>(first);
    some.num_tokens = count;
    some.values += skip * value_stride;
    some.codes.rows += skip * codes.row_stride;
    some.codes.scales += first;
    for (int i = 0; i < kNumCodeOrders; ++i)
      if (codes.forms[i] != nullptr) some.codes.forms[i] += skip * codes.strides[i];
    return some;
  }
  float* token(int t) const { return values + static_cast<std::size_t>(t) * value_stride; }
};

// From here on an element is outsized: its product with a nibble, or that of an infinity with a zero nibble,
// would spoil a sum that is well defined with the decoded weights. A NaN spoils every sum rightly and stays.
inline constexpr float kOutsized = 0x1p100f;

// Floats from token to token in each form.
std::size_t value_stride(std::int64_t in);
std::size_t nibble_stride(std::int64_t in);

// Fills token `t` of input.nibbles from input.values, elements [begin, end), and marks it in input.outsized.
// Threads may share a token if `begin` is a multiple of nibble_unit().
void fill_nibbles(const GemvInput& input, int t, std::int64_t begin, std::int64_t end);
std::int64_t nibble_unit();

// sums[t * sums_stride + r] = x[t] . weight[begin + r] for all tokens and the rows [begin, end), whose
// elements are contiguous.
void dot_rows(const Weight& weight, const GemvInput& input, std::int64_t begin, std::int64_t end, float* sums,
              std::size_t sums_stride);

}  // namespace kf::cpu
