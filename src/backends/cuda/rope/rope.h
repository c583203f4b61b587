// rope, append_kv, and both in one launch.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cuda {

Support rope_supports(const RopeParams& p, const PlanContext& ctx);
Support rope_plain_supports(const RopeParams& p, const PlanContext& ctx);  // the primitive: no QK-norm
void rope_run(const RopeParams& p, const RunContext& ctx);
Support append_kv_supports(const AppendKvParams& p, const PlanContext& ctx);
void append_kv_run(const AppendKvParams& p, const RunContext& ctx);
Support rope_append_supports(const RopeAppendParams& p, const PlanContext& ctx);
void rope_append_run(const RopeAppendParams& p, const RunContext& ctx);

}  // namespace kf::cuda
