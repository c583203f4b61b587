// What becomes of a row of f32 scores before its softmax, on the calling thread.
#pragma once

#include <cstdint>

#include "kf/tensor.h"

namespace kf::cpu {

// Groups that are judged in vectors, and how many scores at a time: whole groups.
inline constexpr int kMostKept = 32, kKeepAtATime = 128;
constexpr bool keeps_in_vectors(std::int64_t keep_m) {
  return keep_m >= 1 && keep_m <= kMostKept && (keep_m & (keep_m - 1)) == 0;
}

// row = cap * tanh(row / cap)
void cap_row(float* row, std::int64_t n, float cap);
// row[i] -= slope * |distance - i|
void add_slope(float* row, std::int64_t n, float slope, std::int64_t distance);
// row += mask from this element offset on, or -inf where a boolean mask is false
void apply_mask(float* row, std::int64_t n, const TensorView& mask, std::int64_t offset);
// of every m neighbours keeps the n largest (ops/keep_largest.h); row[0] has this position within its m
void keep_largest(float* row, std::int64_t n, std::int64_t position, std::int64_t keep_n,
                  std::int64_t keep_m);

}  // namespace kf::cpu
