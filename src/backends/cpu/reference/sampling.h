#pragma once

#include "kf/kernel.h"
#include "kf/ops/sampling.h"

namespace kf::cpu::reference {

void embedding(const EmbeddingParams& p, const RunContext& ctx);
void argmax(const ArgmaxParams& p, const RunContext& ctx);
void sample(const SampleParams& p, const RunContext& ctx);

}  // namespace kf::cpu::reference
