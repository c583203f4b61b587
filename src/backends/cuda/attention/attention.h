// Attention in three kernels: on matrix units for tiles of many rows and for few (decode), and in f32 for whatever those do not
// take; and the op that merges partial results.
#pragma once

#include <memory>

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cuda {

namespace attention {
struct State {
  bool few_rows;      // the decode kernel
  int target_blocks;  // see Args
  std::size_t max_blocks;
  int cluster_blocks = 0;  // see Args
  bool wide_blocks = false;
};
}  // namespace attention

// f16 and bf16 in rows of 16-byte chunks, head_dim to 256.
Support flash2_supports(const AttentionParams& p, const PlanContext& ctx);
std::shared_ptr<attention::State> flash2_prepare(const AttentionParams& p, const PlanContext& ctx,
                                                 std::size_t* workspace_bytes);
void flash2_run(const AttentionParams& p, const attention::State& s, const RunContext& ctx);

// Any dtypes, quantized keys and values too.
Support attention_f32_supports(const AttentionParams& p, const PlanContext& ctx);
std::shared_ptr<attention::State> attention_f32_prepare(const AttentionParams& p, const PlanContext& ctx,
                                                        std::size_t* workspace_bytes);
void attention_f32_run(const AttentionParams& p, const attention::State& s, const RunContext& ctx);

Support merge_attention_supports(const MergeAttentionParams& p, const PlanContext& ctx);
void merge_attention_run(const MergeAttentionParams& p, const RunContext& ctx);

}  // namespace kf::cuda
