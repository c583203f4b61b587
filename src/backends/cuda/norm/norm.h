// RMSNorm and LayerNorm, with the residual stream in and out.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/norm.h"

namespace kf::cuda {

Support rms_norm_supports(const RmsNormParams& p, const PlanContext& ctx);
Support rms_norm_plain_supports(const RmsNormParams& p,
                                const PlanContext& ctx);  // the primitive: no residual
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx);

Support layer_norm_supports(const LayerNormParams& p, const PlanContext& ctx);
Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext& ctx);
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx);

}  // namespace kf::cuda
