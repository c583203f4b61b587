// The attention family, for the table in kernels.cpp.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cpu {

// flash.cpp: fused, an online softmax over blocks of keys
namespace flash {

Support supports(const AttentionParams& p, const PlanContext& ctx);
std::size_t workspace(const AttentionParams& p, const PlanContext& ctx);
void run(const AttentionParams& p, const RunContext& ctx);

// Cut along the keys where the sequence alone says, so that a row's bits do not depend on the batch.
std::size_t workspace_fixed(const AttentionParams& p, const PlanContext& ctx);
void run_fixed(const AttentionParams& p, const RunContext& ctx);

}  // namespace flash

// unfused.cpp: the primitives as an eager framework runs them
namespace unfused {

std::size_t workspace(const AttentionScoresParams& p, const PlanContext& ctx);
std::size_t workspace(const AttentionValuesParams& p, const PlanContext& ctx);
void run(const AttentionScoresParams& p, const RunContext& ctx);
void run(const AttentionMaskParams& p, const RunContext& ctx);
void run(const AttentionValuesParams& p, const RunContext& ctx);

}  // namespace unfused

// merge.cpp
void merge_run(const MergeAttentionParams& p, const RunContext& ctx);

}  // namespace kf::cpu
