// The primitives that attention is made of when it is not fused, each writing its whole result.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cuda {

Support attention_scores_supports(const AttentionScoresParams& p, const PlanContext& ctx);
void attention_scores_run(const AttentionScoresParams& p, const RunContext& ctx);
Support attention_mask_supports(const AttentionMaskParams& p, const PlanContext& ctx);
void attention_mask_run(const AttentionMaskParams& p, const RunContext& ctx);
Support attention_values_supports(const AttentionValuesParams& p, const PlanContext& ctx);
void attention_values_run(const AttentionValuesParams& p, const RunContext& ctx);

}  // namespace kf::cuda
