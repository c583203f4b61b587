// Elementwise ops: binary, activation and gated activation.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu {

void binary_run(const BinaryParams& p, const RunContext& ctx);

Support activation_supports(const ActivationParams& p, const PlanContext& ctx);
void activation_run(const ActivationParams& p, const RunContext& ctx);
Support activation_quantized_supports(const ActivationParams& p, const PlanContext& ctx);
std::size_t activation_quantized_workspace(const ActivationParams& p, const PlanContext& ctx);
void activation_quantized_run(const ActivationParams& p, const RunContext& ctx);

Support gated_activation_supports(const GatedActivationParams& p, const PlanContext& ctx);
void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx);
Support gated_activation_quantized_supports(const GatedActivationParams& p, const PlanContext& ctx);
std::size_t gated_activation_quantized_workspace(const GatedActivationParams& p, const PlanContext& ctx);
void gated_activation_quantized_run(const GatedActivationParams& p, const RunContext& ctx);

}  // namespace kf::cpu
