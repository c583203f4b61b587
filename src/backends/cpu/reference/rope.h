#pragma once

#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cpu::reference {

void rope(const RopeParams& p, const RunContext& ctx);
void append_kv(const AppendKvParams& p, const RunContext& ctx);
void rope_append(const RopeAppendParams& p, const RunContext& ctx);

}  // namespace kf::cpu::reference
