// The functions of kf/ops/common.h on f32, for results that are kept as Out: for 16-bit results by the hardware's
// approximations, whose error (2^-21) is far below their rounding.
#pragma once

#include <type_traits>

#include "backends/cuda/device/machine.cuh"
#include "core/gelu_logistic.h"
#include "core/half.h"
#include "kf/ops/common.h"

namespace kf::cuda {

template <class Out>
__device__ inline float exponential(float x) {
  if constexpr (std::is_same_v<Out, float>) return expf(x);
  return approximate_exp2(1.44269504088896341f * x);
}

// x / (1 + e^y). Approximated, as x 2^-20 / (2^-20 + 2^-20 e^y): the reciprocal of a large sum would be flushed to zero.
template <class Out>
__device__ inline float over_one_plus_exp(float x, float y) {
  if constexpr (std::is_same_v<Out, float>) return x / (1.0f + expf(y));
  const float e = approximate_exp2(fmaf(1.44269504088896341f, y, -20.0f));
  return x * 0x1p-20f * approximate_reciprocal(0x1p-20f + e);
}

template <class Out>
__device__ inline float silu(float x) {
  return over_one_plus_exp<Out>(x, -x);
}

// x/2 (1 + tanh u) is x / (1 + e^-2u), which does not cancel for negative x.
template <class Out>
__device__ inline float gelu_tanh(float x) {
  return over_one_plus_exp<Out>(x, x * fmaf(x * x, -0.0713548162726f, -1.59576912160573f));
}

// x/2 erfc(-x / sqrt 2), which does not cancel either. For bf16 as core/gelu_logistic.h says, P(s) beyond the
// range as at its end.
template <class Out>
__device__ inline float gelu(float x) {
  if constexpr (!std::is_same_v<Out, Bf16>) return 0.5f * x * erfcf(-0.70710678118654752f * x);
  using namespace gelu_logistic;
  const float s = fminf(x * x, kEnd * kEnd);
  float p = fmaf(s, kP6, kP5);
  p = fmaf(p, s, kP4);
  p = fmaf(p, s, kP3);
  p = fmaf(p, s, kP2);
  p = fmaf(p, s, kP1);
  p = fmaf(p, s, kP0);
  return x * approximate_reciprocal(1.0f + approximate_exp2(-x * p));
}

// In place.
template <class Out, int W>
__device__ inline void activate(Activation kind, float (&v)[W]) {
  const auto each = [&](auto f) {
#pragma unroll
    for (int i = 0; i < W; ++i) v[i] = f(v[i]);
  };
  switch (kind) {
    case Activation::silu:
      return each([](float x) { return silu<Out>(x); });
    case Activation::gelu:
      return each([](float x) { return gelu<Out>(x); });
    case Activation::gelu_tanh:
      return each([](float x) { return gelu_tanh<Out>(x); });
    case Activation::relu:
      return each([](float x) { return x < 0 ? 0.0f : x; });  // NaN passes
    case Activation::none:
      return;
  }
}

}  // namespace kf::cuda
