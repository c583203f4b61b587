// Products of many tokens with constant 2:4 weights by cuSPARSELt, which is opened at run time.
#pragma once

#include <memory>

#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cuda {

struct CusparseLtState;

namespace cusparselt {
// f16 and bf16; a residual, no prologue, bias or activation.
Support supports(const LinearParams& p, const PlanContext& ctx);
std::shared_ptr<CusparseLtState> prepare(const LinearParams& p, const PlanContext& ctx,
                                         std::size_t* workspace_bytes);
void run(const LinearParams& p, const CusparseLtState& s, const RunContext& ctx);
}  // namespace cusparselt

}  // namespace kf::cuda
