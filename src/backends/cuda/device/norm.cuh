// What rows are normalised with, and by.
#pragma once

#include "backends/cuda/device/reduce.cuh"

namespace kf::cuda {

struct Statistics {
  float mean,
      inverse;  // inverse: of the root of the variance and eps; about 0 where the norm does not centre

  // h normalised, times offset + weight; `to` may be h.
  template <int W>
  __device__ void apply(const float (&h)[W], float weight_offset, const float (&weight)[W],
                        float (&to)[W]) const {
#pragma unroll
    for (int k = 0; k < W; ++k) to[k] = (h[k] - mean) * inverse * (weight_offset + weight[k]);
  }
  // h normalised, times weight, and bias; `to` may be h.
  template <int W>
  __device__ void apply(const float (&h)[W], const float (&weight)[W], const float (&bias)[W],
                        float (&to)[W]) const {
#pragma unroll
    for (int k = 0; k < W; ++k) to[k] = fmaf((h[k] - mean) * inverse, weight[k], bias[k]);
  }
};

// Of n elements, by the sum of their squares about the mean.
__device__ inline float inverse_deviation(float squares, int n, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(n) + eps);
}

// Of a row of n elements, of which each(f) gives this thread's to f(h), W at a time. centred: LayerNorm's, else RMSNorm's.
// kGuarded: where rows that are not centred come one after another.
template <bool kGuarded, int W, class Each>
__device__ Statistics row_statistics(bool centred, int n, float eps, const Each& each) {
  float mean = 0;
  if (centred) {
    float sum = 0;
    each([&](const float(&h)[W]) {
#pragma unroll
      for (int k = 0; k < W; ++k) sum += h[k];
    });
    mean = row_reduce<Sum, 0, false>(sum) / static_cast<float>(n);
  }
  float squares = 0;
  each([&](const float(&h)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) squares += (h[k] - mean) * (h[k] - mean);
  });
  return {mean, inverse_deviation(row_reduce<Sum, 1, kGuarded>(squares), n, eps)};
}

// LayerNorm's by one reduction in place of two, which a row would wait for: sums about `near`, any element of the row, of which the
// variance follows, but for a row that is further from it than 4 deviations: there what is left after the subtraction would have
// lost more than 4 bits, and the squares are summed again about the mean.
template <int W, class Each>
__device__ Statistics row_statistics_about(float near, int n, float eps, const Each& each) {
  constexpr float kMostLost = 16;
  float sum = 0, squares = 0;
  each([&](const float(&h)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const float apart = h[k] - near;
      sum += apart;
      squares = fmaf(apart, apart, squares);
    }
  });
  const TwoSums sums = row_sums({sum, squares});
  const float apart = sums.first / static_cast<float>(n), mean = near + apart;
  float left = sums.second - sums.first * apart;
  const bool again = !(sums.first * apart <= kMostLost * left);  // a NaN, too
  // Rows of less than a warp reduce together.
  if (blockDim.x < kWarp ? ballot(again) != 0 : again) {
    squares = 0;
    each([&](const float(&h)[W]) {
#pragma unroll
      for (int k = 0; k < W; ++k) squares += (h[k] - mean) * (h[k] - mean);
    });
    squares = row_reduce<Sum, 0, false>(squares);
    if (again) left = squares;
  }
  return {mean, inverse_deviation(left, n, eps)};
}

}  // namespace kf::cuda
