// What the kernels for few tokens have around their products: the tokens' inputs after the prologue, and what becomes of a sum.
#pragma once

#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/largest.cuh"
#include "backends/cuda/device/math.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/linear/gemv_kernel.h"

namespace kf::cuda::gemv {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// x after the prologue, of all tokens, in vectors of W: load(t, i, v) gives x's, put(t, i, v) is given what it has become.
template <int W, class Load, class Put>
__device__ void stage(const Args& a, const Load& load, const Put& put) {
  for (int t = 0; t < a.num_tokens; ++t) {
    const auto each = [&](const auto& f) {
      for (int i = static_cast<int>(threadIdx.x) * W; i < a.in; i += kThreads * W) {
        float v[W];
        load(t, i, v);
        f(i, v);
      }
    };
    Statistics statistics{0, 1};
    if (a.norm != NormKind::none)
      statistics = row_statistics<true, W>(a.norm == NormKind::layer, a.in, a.eps, [&](const auto& f) {
        each([&](int, const float(&v)[W]) { f(v); });
      });
    each([&](int i, float(&v)[W]) {
      if (a.norm != NormKind::none) {
        float w[W];
        load_any(a.norm_weight_dtype, a.norm_weight, i, w);
        statistics.apply(v, a.norm_weight_offset, w, v);
        if (a.norm_bias) {
          load_any(a.norm_bias_dtype, a.norm_bias, i, w);
#pragma unroll
          for (int k = 0; k < W; ++k) v[k] += w[k];
        }
      }
      activate<float>(a.pre_activation, v);
      put(t, i, v);
    });
  }
  __syncthreads();
}

// A sum with bias and activation.
__device__ inline float activated(const Args& a, const Part& p, int row, float sum) {
  float v[1] = {sum}, bias[1];
  if (p.bias) {
    load_any(p.bias_dtype, p.bias, row, bias);
    v[0] += bias[0];
  }
  activate<float>(a.activation, v);
  return v[0];
}

}  // namespace kf::cuda::gemv
