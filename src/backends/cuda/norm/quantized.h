// Norms that write their results as 8-bit codes (OutputQuantization).
#pragma once

#include "kf/kernel.h"
#include "kf/ops/norm.h"

namespace kf::cuda {

Support rms_norm_quantized_supports(const RmsNormParams& p, const PlanContext& ctx);
void rms_norm_quantized_run(const RmsNormParams& p, const RunContext& ctx);
Support layer_norm_quantized_supports(const LayerNormParams& p, const PlanContext& ctx);
void layer_norm_quantized_run(const LayerNormParams& p, const RunContext& ctx);

}  // namespace kf::cuda
