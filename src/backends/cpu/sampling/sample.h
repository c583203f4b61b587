// Drawing a token a row.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/sampling.h"

namespace kf::cpu {

std::size_t sample_workspace(const SampleParams& p, const PlanContext& ctx);
void sample_run(const SampleParams& p, const RunContext& ctx);

}  // namespace kf::cpu
