// What the kernel for up to 16 tokens on matrix units is given; streamed.cpp plans it, streamed_*.cu run it, one file an element type.
#pragma once

#include "backends/cuda/linear/small_kernel.h"

namespace kf::cuda::streamed {

using small::Args;
using small::Part;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostTokens = 16;
constexpr int kStep = 64;           // inputs that a warp takes at a time
constexpr int kRingSteps = 4;       // that it has asked for
constexpr int kGroupRows = 16;      // rows of the weight that a warp multiplies at a time
constexpr int kPartialStride = 20;  // floats, a token's of a group

// How a layer is shared out.
struct Shape {
  int tokens;  // 8 or 16
  int blocks;  // of a cluster; each has `slice` of the inputs
  int slice;   // a multiple of kStep
  int splits;  // warps of a block that share its slice of a group's rows
  int clusters;
};

constexpr int padded_tokens(std::int64_t tokens) {
  int n = 8;
  while (n < tokens) n *= 2;
  return n;
}

// Rows of inputs lie 64 bytes beyond a multiple of 128, so that two of them are in different banks.
constexpr int input_stride(int slice) { return slice + 32; }
constexpr std::size_t shared_bytes(int tokens, int slice) {
  const std::size_t inputs =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(input_stride(slice)) * 2;
  const std::size_t rings = std::size_t{kWarps} * kRingSteps * kGroupRows * kStep * 2;
  const std::size_t partials =
      std::size_t{kWarps} * static_cast<std::size_t>(tokens) * kPartialStride * sizeof(float);
  return inputs + rings + partials;
}

// Groups of rows of a layer, `gated`: of both weights.
constexpr int groups_of(int rows, bool gated) {
  const int own = gated ? kGroupRows / 2 : kGroupRows;
  return (rows + own - 1) / own;
}

// For the element type of x, weights and outputs.
void launch_f16(const Args& a, const Shape& s, const TensorView& on, const RunContext& ctx);
void launch_bf16(const Args& a, const Shape& s, const TensorView& on, const RunContext& ctx);
// How many clusters run at once.
int clusters_f16(bool gated, const Shape& s);
int clusters_bf16(bool gated, const Shape& s);

}  // namespace kf::cuda::streamed
