// What becomes of a row once its scores have been summed: the factor of its outputs, and its log-sum-exp.
#pragma once

#include "backends/cuda/attention/sequences.cuh"

namespace kf::cuda::attention {

constexpr float kLog2e = 1.44269504088896341f;

// Base 2, from the largest score, in its unit, and the sum.
__device__ inline float log_sum_exp(float max, float unit, float sum) {
  return sum == 0 ? -INFINITY : fmaf(max, unit, log2f(sum));
}
// With a sink: what the outputs are multiplied by, and the new log-sum-exp.
__device__ inline float add_sink(float sink, float* lse) {
  const float s = sink * kLog2e, top = fmaxf(*lse, s);
  if (top == -INFINITY) return 0.0f;
  const float own = exp2f(*lse - top), both = own + exp2f(s - top);
  *lse = isnan(*lse) ? *lse : top + log2f(both);
  return own / both;
}

// One row's result: divides, adds the sink, and says where it goes.
struct RowEnd {
  float factor;  // of the sums
  float lse;     // base 2
};
__device__ inline RowEnd end_row(const Args& a, const Segment& s, int head, float max, float unit,
                                 float sum) {
  RowEnd e{sum == 0 ? 0.0f : 1.0f / sum, log_sum_exp(max, unit, sum)};
  if (s.whole && a.sinks) e.factor *= add_sink(a.sinks[head * a.sinks_stride], &e.lse);
  return e;
}

__device__ inline void store_lse(const Args& a, const Span& s, int token, int head, float lse_base_2) {
  if (a.lse.data)
    static_cast<float*>(a.lse.data)[row_offset(a.lse, a, s, token, head)] =
        lse_base_2 * 0.693147180559945309f;
}

}  // namespace kf::cuda::attention
