// The functions of kf/ops/common.h on f32, for results that are kept as Out: for 16-bit results by the hardware's
// approximations, whose error (2^-21) is far below their rounding.
#pragma once

#include <type_traits>

#include "core/half.h"
#include "kf/ops/common.h"

namespace kf::cuda {

__device__ inline float approximate_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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

// x/2 erfc(-x / sqrt 2), which does not cancel either. For bf16 by the logistic function that is the normal distribution's:
// Phi(x) = 1 / (1 + 2^-(x P(x^2))), with a P fitted on [-5.6, 5.6] (relative error of the result 3e-4, a seventh of half a
// unit in the last place); beyond, the result is x or, below 1e-7, exponentially small.
template <class Out>
__device__ inline float gelu(float x) {
  if constexpr (!std::is_same_v<Out, Bf16>) return 0.5f * x * erfcf(-0.70710678118654752f * x);
  const float s = fminf(x * x, 31.36f);
  float p = fmaf(s, 8.172922894e-10f, -9.192471140e-08f);
  p = fmaf(p, s, 3.909517545e-06f);
  p = fmaf(p, s, -6.554964057e-05f);
  p = fmaf(p, s, -6.681408267e-04f);
  p = fmaf(p, s, 1.063464433e-01f);
  p = fmaf(p, s, 2.301069021f);
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
