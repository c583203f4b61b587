// RMSNorm and LayerNorm of rows with and without a residual, all of one dtype and in vectors of 16 bytes.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/norm.h"

namespace kf::cuda {

// Elements of the longest row, which the threads of a block hold between them.
std::int64_t dense_norm_most_elements(DType dtype);
void dense_norm_run(const RmsNormParams& p, const RunContext& ctx);
void dense_norm_run(const LayerNormParams& p, const RunContext& ctx);

Support rms_norm_dense_supports(const RmsNormParams& p, const PlanContext& ctx);  // without a residual
Support rms_norm_residual_dense_supports(const RmsNormParams& p, const PlanContext& ctx);
void rms_norm_dense_run(const RmsNormParams& p, const RunContext& ctx);
Support layer_norm_dense_supports(const LayerNormParams& p, const PlanContext& ctx);
Support layer_norm_residual_dense_supports(const LayerNormParams& p, const PlanContext& ctx);
void layer_norm_dense_run(const LayerNormParams& p, const RunContext& ctx);

}  // namespace kf::cuda
