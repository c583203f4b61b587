#include "backends/cuda/attention/plan.h"

#include <fmt/format.h>

#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/runtime.h"
#include "core/rows.h"

namespace kf::cuda::attention {

bool has_few_rows(const Args& a) {
  constexpr std::int64_t kFewRows = 32;
  return std::int64_t{a.total_q} * a.group <= kFewRows * a.batch;
}

std::int64_t max_units(const Args& a, int tile_rows) {
  const std::int64_t group = a.group;
  if (a.dense)
    return std::int64_t{a.batch} * a.num_kv_heads * ((a.seqlen_q * group + tile_rows - 1) / tile_rows);
  const std::int64_t of_token = (group + tile_rows - 1) / tile_rows;
  return a.num_kv_heads * std::min(a.total_q * group / tile_rows + a.batch, a.total_q * of_token);
}

std::shared_ptr<State> plan(const AttentionParams& p, const Args& a, const Tiles& t,
                            std::size_t* workspace_bytes) {
  const std::int64_t slots = std::int64_t{multiprocessors(p.q.device.index)} * t.blocks_per_sm;
  const std::int64_t units = max_units(a, t.rows);
  const bool cut = t.few || units < slots;
  auto s = std::make_shared<State>();
  s->target_blocks = cut ? static_cast<int>(slots) : 0;
  s->max_blocks = static_cast<std::size_t>(units + s->target_blocks);
  if (cut)
    *workspace_bytes = s->max_blocks * static_cast<std::size_t>(t.rows * (a.value_dim + 1)) * sizeof(float);
  return s;
}

Args args_for(const AttentionParams& p, const State& s, int tile_rows, const RunContext& ctx) {
  Args a = args_of(p);
  a.fault = table_fault(p.q.device.index);
  a.target_blocks = s.target_blocks;
  a.cluster_blocks = s.cluster_blocks;
  a.wide_blocks = s.wide_blocks;
  if (s.target_blocks > 0) {
    a.partial = static_cast<float*>(ctx.workspace);
    a.partial_lse = a.partial + s.max_blocks * static_cast<std::size_t>(tile_rows * a.value_dim);
  }
  return a;
}

Grid grid_of(const Args& a, const State& s, int tile_rows) {
  return {static_cast<unsigned>(s.max_blocks), static_cast<unsigned>(max_units(a, tile_rows))};
}

Support fits(const AttentionParams& p) {
  constexpr std::int64_t kMax = 1 << 27;
  if (const std::int64_t dim = largest_dim(p); dim > kMaxDim)
    return Support::no(fmt::format("head_dim {}: this kernel takes up to {}", dim, kMaxDim));
  if (p.sparsity.block_layout.present()) return Support::no("block_layout: this kernel attends every block");
  if (p.sparsity.keep_m != 0)
    return Support::no(fmt::format("keep_m {}: this kernel keeps all scores", p.sparsity.keep_m));
  if (p.q.dim(-1) == 0 || p.v.dim(-1) == 0) return Support::no("head_dim 0: this kernel takes at least 1");
  const std::int64_t rows = p.q.numel() / p.q.dim(-1);
  if (rows > kMax || p.k.dim(0) > kMax || p.k.dim(1) > kMax || p.k.dim(2) > kMax)
    return Support::no(
        fmt::format("q {}, k {}: too many rows for one grid", shape_string(p.q), shape_string(p.k)));
  return Support::yes();
}

}  // namespace kf::cuda::attention
