#pragma once

#include "kf/kernel.h"
#include "kf/ops/norm.h"

namespace kf::cpu::reference {

void rms_norm(const RmsNormParams& p, const RunContext& ctx);
void layer_norm(const LayerNormParams& p, const RunContext& ctx);

}  // namespace kf::cpu::reference
