// What the unfused kernels are given: unfused.cpp fills it in, unfused.cu runs them.
#pragma once

#include "backends/cuda/attention/args.h"
#include "kf/kernel.h"

namespace kf::cuda::attention {

// Rows of scores or probabilities, f32.
struct UnfusedArgs {
  Args batch;  // q, k and v as far as the op has them
  Rows scores;
  int columns;
};

struct MaskArgs {
  Args batch;
  Rows from, to;
  int columns;
  // A block layout: either has data, or none.
  const std::uint8_t* bits;
  const std::int32_t* list;
  std::int64_t layout_batch_stride, layout_head_stride, layout_block_stride;
  int layout_columns, heads_a_layout, block_size_q, block_size_k;
  int keep_n, keep_m;
};

// Rows of a tile; max_units: of these.
inline constexpr int kUnfusedRows = 64;
void launch_scores(const UnfusedArgs& a, std::int64_t max_units, const TensorView& on, const RunContext& ctx);
void launch_values(const UnfusedArgs& a, std::int64_t max_units, const TensorView& on, const RunContext& ctx);
void launch_mask(const MaskArgs& a, const TensorView& on, const RunContext& ctx);

// Scores of a row that a block holds at a time, at least keep_m of them.
inline constexpr int kMaskColumns = 2048;

}  // namespace kf::cuda::attention
