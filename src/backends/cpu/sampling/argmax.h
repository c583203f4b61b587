// The largest logit of each row.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/sampling.h"

namespace kf::cpu {

void argmax_run(const ArgmaxParams& p, const RunContext& ctx);

}  // namespace kf::cpu
