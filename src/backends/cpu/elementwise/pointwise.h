// Elementwise ops: binary, activation and gated activation.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu {

void binary_run(const BinaryParams& p, const RunContext& ctx);

void activation_run(const ActivationParams& p, const RunContext& ctx);

void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx);

}  // namespace kf::cpu
