// Rotary position embedding, with QK-norm, and with writing to a cache.
#pragma once

#include <cstddef>

#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cpu {

// The primitive form: no QK-norm.
Support rope_plain_supports(const RopeParams& p, const PlanContext& ctx);
Support rope_supports(const RopeParams& p, const PlanContext& ctx);
std::size_t rope_workspace(const RopeParams& p, const PlanContext& ctx);
void rope_run(const RopeParams& p, const RunContext& ctx);

Support rope_append_supports(const RopeAppendParams& p, const PlanContext& ctx);
std::size_t rope_append_workspace(const RopeAppendParams& p, const PlanContext& ctx);
void rope_append_run(const RopeAppendParams& p, const RunContext& ctx);

}  // namespace kf::cpu
