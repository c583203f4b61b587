// binary, activation and gated_activation.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cuda {

Support binary_supports(const BinaryParams& p, const PlanContext& ctx);
void binary_run(const BinaryParams& p, const RunContext& ctx);
Support activation_supports(const ActivationParams& p, const PlanContext& ctx);
void activation_run(const ActivationParams& p, const RunContext& ctx);
Support gated_activation_supports(const GatedActivationParams& p, const PlanContext& ctx);
void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx);

}  // namespace kf::cuda
