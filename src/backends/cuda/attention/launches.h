// The instances of the kernels: one file each, so that they compile side by side.
#pragma once

#include "backends/cuda/attention/args.h"
#include "kf/kernel.h"

namespace kf::cuda::attention {

// Blocks that a launch has, and rows of units that the launch after it combines.
struct Grid {
  unsigned blocks, units;
};

// By the dtype of q; dims up to 64, 128 or 256.
template <class T, int kDim>
void launch_flash2(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx);
template <class T, int kDim>
void launch_decode(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx);
template <class T>
void launch_f32(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx);

}  // namespace kf::cuda::attention
