#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/launches.h"
#include "backends/cuda/attention/plan.h"
#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/supports.h"
#include "core/half.h"

namespace kf::cuda {

using namespace attention;

namespace {

std::size_t shared_bytes(const AttentionParams& p) {
  return F32Shape::shared_bytes(static_cast<int>(p.q.dim(-1)), static_cast<int>(p.v.dim(-1)));
}

}  // namespace

Support attention_f32_supports(const AttentionParams& p, const PlanContext& ctx) {
  if (const Support s = fits(p); !s) return s;
  return shared_fits(shared_bytes(p), ctx.caps);
}

std::shared_ptr<State> attention_f32_prepare(const AttentionParams& p, const PlanContext&,
                                             std::size_t* workspace_bytes) {
  const Args a = args_of(p);
  return plan(p, a, {F32Shape::kRows, F32Shape::kBlocksPerSm, has_few_rows(a), shared_bytes(p)},
              workspace_bytes);
}

void attention_f32_run(const AttentionParams& p, const State& s, const RunContext& ctx) {
  const Args a = args_for(p, s, F32Shape::kRows, ctx);
  const Grid grid = grid_of(a, s, F32Shape::kRows);
  if (grid.units == 0) return;
  if (p.q.dtype == DType::f32) return launch_f32<float>(a, grid, p.q, ctx);
  return p.q.dtype == DType::f16 ? launch_f32<F16>(a, grid, p.q, ctx) : launch_f32<Bf16>(a, grid, p.q, ctx);
}

}  // namespace kf::cuda
