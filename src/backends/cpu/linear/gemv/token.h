// What stands before and after the dot products of a linear layer of few tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/gemv/dot.h"
#include "kf/ops/common.h"

namespace kf::cpu {

// What becomes of a row's sums: out = act(sum + bias) + residual.
struct GemvEpilogue {
  TensorView bias, residual, out;
  Activation activation = Activation::none;
};

// Fills token `t` of the input's forms with row `t` of x, prologue applied.
void prepare_token(const TensorView& x, const Prologue& prologue, const GemvInput& input, int t);

// Output columns [begin, begin + count) of tokens [first, first + num_tokens).
void store_sums(const GemvEpilogue& epilogue, const float* sums, std::size_t sums_stride, int first,
                int num_tokens, std::int64_t begin, std::int64_t count);

// hidden = act(gate) * up, `count` elements.
void gate_sums(Activation activation, const float* gate, const float* up, std::int64_t count, float* hidden);

}  // namespace kf::cpu
