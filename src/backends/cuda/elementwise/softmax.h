// Softmax over the last dimension.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cuda {

Support softmax_supports(const SoftmaxParams& p, const PlanContext& ctx);
void softmax_run(const SoftmaxParams& p, const RunContext& ctx);

}  // namespace kf::cuda
