// cpu::attention_flash: exact attention with an online softmax in f32, over dense, packed and paged keys and
// values. Prefill, decode and chunked prefill are one kernel, so that a batch may mix them: each sequence is
// cut into tasks (schedule.h), and a task takes the way that suits its number of query rows (attend.h).

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/kernels.h"
#include "backends/cpu/attention/schedule.h"
#include "backends/cpu/attention/score_rows.h"
#include "backends/cpu/team.h"
#include "backends/cpu/workspace.h"

namespace kf::cpu {
namespace {

// The workspace: schedule, partial results, scratch of every thread.
struct FlashSpace {
  AttentionTask* tasks;
  AttentionMerge* merges;
  AttentionPartials partials;
  AttentionScratch* scratch;  // [num_threads]
  std::size_t bytes;

  FlashSpace(void* workspace, const AttentionParams& p, Split split, int num_threads) {
    const ScheduleBounds bounds = schedule_bounds(p, split);
    Workspace parts(workspace);
    tasks = parts.take<AttentionTask>(bounds.tasks);
    merges = parts.take<AttentionMerge>(bounds.merges);
    partials.out = parts.take<float>(bounds.partial_rows * static_cast<std::size_t>(p.v.dim(-1)));
    partials.stats = parts.take<float>(bounds.partial_rows * 2);
    scratch = parts.take<AttentionScratch>(static_cast<std::size_t>(num_threads));
    bytes = parts.bytes();
  }
};

void run(const AttentionParams& p, Split split, const RunContext& ctx) {
  const FlashSpace space(ctx.workspace, p, split, ctx.num_threads);
  const Schedule schedule = make_schedule(p, split, space.tasks, space.merges);
  run_team(ctx.num_threads, [&](const Member& m) {
    AttentionScratch& mine = space.scratch[m.thread];
    m.deal(static_cast<std::int64_t>(schedule.tasks.size()),
           [&](std::int64_t i) { attend(p, schedule.tasks[i], space.partials, mine); });
    m.part(static_cast<std::int64_t>(schedule.merges.size()),
           [&](std::int64_t i) { merge_partials(p, schedule.merges[i], space.partials); });
  });
}

}  // namespace

Support flash::supports(const AttentionParams& p, const PlanContext&) {
  for (const std::int64_t head_dim : {p.q.dim(-1), p.v.dim(-1)})
    if (head_dim % 8 != 0 || head_dim > kMaxHeadDim)
      return Support::no(
          fmt::format("head_dim {}: this kernel takes multiples of 8 up to {}", head_dim, kMaxHeadDim));
  if (const SparseKeys& s = p.sparsity; s.keep_m > 0) {
    if (!keeps_in_vectors(s.keep_m))
      return Support::no(
          fmt::format("keep_m {}: this kernel takes powers of two up to {}", s.keep_m, kMostKept));
    if (s.block_layout.present() && s.block_size_k % s.keep_m != 0)
      return Support::no(fmt::format("block_size_k {}: this kernel takes multiples of keep_m, {}",
                                     s.block_size_k, s.keep_m));
  }
  // Tasks count keys and rows in 32 bits.
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() - kKeyBlock;
  const std::int64_t tokens = ops::is_dense(p.tables) ? p.q.dim(1) : p.q.dim(0);
  const std::int64_t num_kv_heads = std::max<std::int64_t>(p.k.dim(ops::kv_heads_axis(p.tables)), 1);
  if (const std::int64_t keys = ops::max_kv_len(p.tables, p.k),
      rows = tokens * (p.q.dim(-2) / num_kv_heads);  // of one K/V head
      std::max(keys, rows) > kMost)
    return Support::no(fmt::format("{} keys, {} query rows: this kernel takes up to {}", keys, rows, kMost));
  return Support::yes();
}

std::size_t flash::workspace(const AttentionParams& p, const PlanContext& ctx) {
  return FlashSpace(nullptr, p, Split::by_batch, ctx.num_threads).bytes;
}
void flash::run(const AttentionParams& p, const RunContext& ctx) { cpu::run(p, Split::by_batch, ctx); }

std::size_t flash::workspace_fixed(const AttentionParams& p, const PlanContext& ctx) {
  return FlashSpace(nullptr, p, Split::fixed, ctx.num_threads).bytes;
}
void flash::run_fixed(const AttentionParams& p, const RunContext& ctx) { cpu::run(p, Split::fixed, ctx); }

}  // namespace kf::cpu
