#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cpu::reference {

void linear(const LinearParams& p, const RunContext& ctx);
void qkv_linear(const QkvLinearParams& p, const RunContext& ctx);
void gated_ffn(const GatedFfnParams& p, const RunContext& ctx);
void lm_head_argmax(const LmHeadArgmaxParams& p, const RunContext& ctx);

std::size_t workspace(const LinearParams& p, const PlanContext& ctx);
std::size_t workspace(const QkvLinearParams& p, const PlanContext& ctx);
std::size_t workspace(const GatedFfnParams& p, const PlanContext& ctx);
std::size_t workspace(const LmHeadArgmaxParams& p, const PlanContext& ctx);

}  // namespace kf::cpu::reference
