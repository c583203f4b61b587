// What the kernel for few tokens is given; small.cpp fills it in, small_*.cu run it, one file an element type.
#pragma once

#include <cstdint>

#include "kf/ops/common.h"

namespace kf::cuda::small {

// One weight matrix, and where its products go.
struct Part {
  const void* weight;
  std::int64_t weight_stride;  // of rows
  const void* bias;            // or null
  DType bias_dtype;
  void* out;
  std::int64_t out_stride;  // of tokens
  int rows;                 // of the weight
};

struct Args {
  const void* x;
  std::int64_t x_stride;
  int num_tokens, in;
  Part parts[3];
  int num_parts;
  const void* up;  // gated: the second weight, shaped as the first
  std::int64_t up_stride;
  // The prologue.
  NormKind norm;
  const void *norm_weight, *norm_bias;
  DType norm_weight_dtype, norm_bias_dtype;
  float eps, norm_weight_offset;
  Activation pre_activation;
  // The epilogue.
  Activation activation;
  const void* residual;  // or null
  std::int64_t residual_stride;
  int num_groups;  // of rows; set by the launch
  bool constant_weights;
  bool wide;  // all rows can be read in accesses of 16 bytes
};

// For the element type of x, weights and outputs.
void launch_f32(const Args& a, const TensorView& on, const RunContext& ctx);
void launch_f16(const Args& a, const TensorView& on, const RunContext& ctx);
void launch_bf16(const Args& a, const TensorView& on, const RunContext& ctx);

// Bytes of shared memory that the tokens' inputs take.
inline std::size_t shared_bytes(std::int64_t num_tokens, std::int64_t in) {
  std::int64_t padded = 1;
  while (padded < num_tokens) padded *= 2;
  return static_cast<std::size_t>(padded * in) * sizeof(float);
}

}  // namespace kf::cuda::small
