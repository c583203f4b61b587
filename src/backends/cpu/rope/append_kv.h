// Writing keys and values to a cache.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cpu {

std::size_t append_kv_workspace(const AppendKvParams& p, const PlanContext& ctx);
void append_kv_run(const AppendKvParams& p, const RunContext& ctx);

}  // namespace kf::cpu
