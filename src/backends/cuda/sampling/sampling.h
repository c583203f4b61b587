// embedding, argmax and sample.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/sampling.h"

namespace kf::cuda {

Support embedding_supports(const EmbeddingParams& p, const PlanContext& ctx);
void embedding_run(const EmbeddingParams& p, const RunContext& ctx);
Support argmax_supports(const ArgmaxParams& p, const PlanContext& ctx);
std::size_t argmax_workspace(const ArgmaxParams& p, const PlanContext& ctx);
void argmax_run(const ArgmaxParams& p, const RunContext& ctx);
Support sample_supports(const SampleParams& p, const PlanContext& ctx);
void sample_run(const SampleParams& p, const RunContext& ctx);

}  // namespace kf::cuda
