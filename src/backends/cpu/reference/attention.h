#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cpu::reference {

void attention(const AttentionParams& p, const RunContext& ctx);
void attention_scores(const AttentionScoresParams& p, const RunContext& ctx);
void attention_mask(const AttentionMaskParams& p, const RunContext& ctx);
void attention_values(const AttentionValuesParams& p, const RunContext& ctx);
void merge_attention(const MergeAttentionParams& p, const RunContext& ctx);

std::size_t workspace(const AttentionParams& p, const PlanContext& ctx);
std::size_t workspace(const AttentionScoresParams& p, const PlanContext& ctx);
std::size_t workspace(const AttentionValuesParams& p, const PlanContext& ctx);

}  // namespace kf::cpu::reference
