// Elementwise ops that write their results as 8-bit codes (OutputQuantization).
#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cuda {

Support quantize_supports(const QuantizeParams& p, const PlanContext& ctx);
void quantize_run(const QuantizeParams& p, const RunContext& ctx);
Support activation_quantized_supports(const ActivationParams& p, const PlanContext& ctx);
void activation_quantized_run(const ActivationParams& p, const RunContext& ctx);
Support gated_activation_quantized_supports(const GatedActivationParams& p, const PlanContext& ctx);
void gated_activation_quantized_run(const GatedActivationParams& p, const RunContext& ctx);

}  // namespace kf::cuda
