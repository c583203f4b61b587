// Dot products of tokens in 8 bits (InputQuantization) with the rows of a weight as it lies in memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/gemv/dot.h"
#include "core/sparse.h"

namespace kf::cpu {

// Whether, and in which order, codes of x are multiplied with a weight of this kind; kNumCodeOrders: they are not.
CodeOrder code_order(const Weight& weight);

// Bytes of a token's codes, and floats of a token's form in an order.
std::size_t code_stride(std::int64_t in);
std::size_t code_form_stride(CodeOrder order, std::int64_t in);

// The values of token `t` to codes, in all the forms that `input` has.
void quantize_token(const GemvInput& input, int t);

// As dot_rows(); only input.codes is read.
void dot_int8_rows(const Weight& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                   float* sums, std::size_t sums_stride);

}  // namespace kf::cpu
