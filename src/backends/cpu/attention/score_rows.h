// What becomes of a row of f32 scores before its softmax, on the calling thread.
#pragma once

#include <cstdint>

#include "kf/tensor.h"

namespace kf::cpu {

// row = cap * tanh(row / cap)
void cap_row(float* row, std::int64_t n, float cap);
// row[i] -= slope * |distance - i|
void add_slope(float* row, std::int64_t n, float slope, std::int64_t distance);
// row += mask from this element offset on, or -inf where a boolean mask is false
void apply_mask(float* row, std::int64_t n, const TensorView& mask, std::int64_t offset);

}  // namespace kf::cpu
