// How the kernels for few tokens are given what stands around their products.
#pragma once

#include "backends/cuda/linear/small_kernel.h"
#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cuda::small {

// x and the prologue.
Args args_of(const TensorView& x, const Prologue& prologue);
// A weight [out, in] and where its products go; without them, where these are compared alone.
void add_part(Args& a, const TensorView& weight, const TensorView& bias, const TensorView& out);
void set_residual(Args& a, const TensorView& residual);
void set_largest(Args& a, const LmHeadArgmaxParams& p, void* workspace);

// Whether rows of x and what the prologue reads can be read in accesses of 16 bytes.
bool is_wide(const void* data, DType dtype, std::int64_t stride, std::int64_t in);
bool input_is_wide(const Args& a);

// The gated FFN's activated products, between two launches.
TensorView intermediate(const GatedFfnParams& p, std::int64_t features, void* workspace);

}  // namespace kf::cuda::small
