#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu::reference {

void binary(const BinaryParams& p, const RunContext& ctx);
void activation(const ActivationParams& p, const RunContext& ctx);
void gated_activation(const GatedActivationParams& p, const RunContext& ctx);
void softmax(const SoftmaxParams& p, const RunContext& ctx);
void dequantize(const DequantizeParams& p, const RunContext& ctx);
void quantize(const QuantizeParams& p, const RunContext& ctx);

}  // namespace kf::cpu::reference
