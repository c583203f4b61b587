// Softmax over the last dimension, with lse.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu {

std::size_t softmax_workspace(const SoftmaxParams& p, const PlanContext& ctx);
void softmax_run(const SoftmaxParams& p, const RunContext& ctx);

}  // namespace kf::cpu
