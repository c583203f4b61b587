// Dequantization to f32, f16 or bf16.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu {

void dequantize_run(const DequantizeParams& p, const RunContext& ctx);

}  // namespace kf::cpu
