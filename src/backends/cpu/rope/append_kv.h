// Writing keys and values to a cache.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cpu {

void append_kv_run(const AppendKvParams& p, const RunContext& ctx);

}  // namespace kf::cpu
