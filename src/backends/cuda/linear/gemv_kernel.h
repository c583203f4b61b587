// What the kernel for few tokens is given; small.cpp fills it in, small_*.cu run it, one file an element type.
#pragma once

#include <cstdint>

#include "backends/cuda/device/limits.h"
#include "backends/cuda/sampling/largest.h"
#include "kf/ops/common.h"

namespace kf::cuda::gemv {

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

// Of the last layer of a greedy choice, whose products are not written: what each warp has found, and the choice.
struct Largest {
  std::uint64_t* parts;  // or null
  LargestOut out;
};

struct Args {
  DType dtype;  // of x, the residual and the outputs
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
  Largest largest;
  int num_groups;  // of rows; set by the launch
  bool constant_weights;
  bool wide;  // all rows can be read in accesses of 16 bytes
};

// For the element type of x, weights and outputs.
void launch_f32(const Args& a, const TensorView& on, const RunContext& ctx);
void launch_f16(const Args& a, const TensorView& on, const RunContext& ctx);
void launch_bf16(const Args& a, const TensorView& on, const RunContext& ctx);

constexpr int kBlocks = 2;  // that a multiprocessor holds; a third has been slower
// Bytes of Largest::parts: a number for each result that a warp has at a time, on a device of so many multiprocessors.
inline std::size_t largest_bytes(int multiprocessors) {
  constexpr std::size_t kWarpsOfBlock = 8, kResults = 16;
  return static_cast<std::size_t>(multiprocessors) * kBlocks * kWarpsOfBlock * kResults *
         sizeof(std::uint64_t);
}

constexpr std::size_t kMostRingBytes = kCopiesAside ? 32 << 10 : 0;
constexpr std::size_t kMaxSharedBytes =
    kCopiesAside ? 192 << 10 : kMostShared;  // beside the rings of weights
constexpr std::int64_t kMostFeatures = kMaxSharedBytes / sizeof(float);

// Bytes of shared memory that the tokens' inputs take.
inline std::size_t shared_bytes(std::int64_t num_tokens, std::int64_t in) {
  std::int64_t padded = 1;
  while (padded < num_tokens) padded *= 2;
  return static_cast<std::size_t>(padded * in) * sizeof(float);
}

}  // namespace kf::cuda::gemv
