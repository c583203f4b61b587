// Attention by cuDNN, which is opened at run time.
#pragma once

#include <memory>

#include "kf/kernel.h"
#include "kf/ops/attention.h"

namespace kf::cuda {

struct CudnnState;

// f16 and bf16, dense batches, causal or all keys; log-sum-exp.
Support cudnn_supports(const AttentionParams& p, const PlanContext& ctx);
std::shared_ptr<CudnnState> cudnn_prepare(const AttentionParams& p, const PlanContext& ctx,
                                          std::size_t* workspace_bytes);
void cudnn_run(const AttentionParams& p, const CudnnState& s, const RunContext& ctx);

}  // namespace kf::cuda
