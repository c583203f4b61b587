// Rows of a table by id.
#pragma once

#include "kf/kernel.h"
#include "kf/ops/sampling.h"

namespace kf::cpu {

void embedding_run(const EmbeddingParams& p, const RunContext& ctx);

}  // namespace kf::cpu
