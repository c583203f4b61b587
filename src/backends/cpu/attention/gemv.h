// Products of one f32 vector with the rows of a matrix, on the calling thread: attention's matmuls for one
// query token, where a GEMM has nothing to reuse.
#pragma once

#include <cstdint>

namespace kf::cpu {

// out[j] = scale * x . rows[j], of `dim` elements each, for j < count
void vector_times_rows(const float* x, const float* rows, std::int64_t stride, std::int64_t count,
                       std::int64_t dim, float scale, float* out);
// out = sum over j < count of weights[j] * rows[j]
void weighted_sum_of_rows(const float* weights, const float* rows, std::int64_t stride, std::int64_t count,
                          std::int64_t dim, float* out);

}  // namespace kf::cpu
