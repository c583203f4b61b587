// RMSNorm and LayerNorm, with the residual stream in and out.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/norm.h"

namespace kf::cpu {

// Primitive forms: no residual, no quantized output.
Support rms_norm_plain_supports(const RmsNormParams& p, const PlanContext& ctx);
Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext& ctx);

std::size_t rms_norm_workspace(const RmsNormParams& p, const PlanContext& ctx);
std::size_t layer_norm_workspace(const LayerNormParams& p, const PlanContext& ctx);
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx);
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx);
Support rms_norm_residual_supports(const RmsNormParams& p, const PlanContext& ctx);
Support layer_norm_residual_supports(const LayerNormParams& p, const PlanContext& ctx);

// Output in 8 bits.
Support rms_norm_quantized_supports(const RmsNormParams& p, const PlanContext& ctx);
Support layer_norm_quantized_supports(const LayerNormParams& p, const PlanContext& ctx);
std::size_t rms_norm_quantized_workspace(const RmsNormParams& p, const PlanContext& ctx);
std::size_t layer_norm_quantized_workspace(const LayerNormParams& p, const PlanContext& ctx);
void rms_norm_quantized_run(const RmsNormParams& p, const RunContext& ctx);
void layer_norm_quantized_run(const LayerNormParams& p, const RunContext& ctx);

}  // namespace kf::cpu
