// cpu::attention_flash: exact attention with an online softmax in f32, over dense, packed and paged keys and
// values. Prefill, decode and chunked prefill are one kernel, so that a batch may mix them: each sequence is
// cut into tasks (schedule.h), and a task takes the way that suits its number of query rows (attend.h).

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <omp.h>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/kernels.h"
#include "backends/cpu/attention/schedule.h"

namespace kf::cpu {
namespace {

// The workspace: schedule, partial results, scratch of every thread.
struct Layout {
  std::size_t tasks, merges, partial_out, partial_stats, scratch, total;
};

Layout layout(const AttentionParams& p, int num_threads) {
  const ScheduleBounds bounds = schedule_bounds(p);
  Layout l{};
  const auto take = [&](std::size_t bytes) {
    const std::size_t offset = l.total;
    l.total += (bytes + 63) / 64 * 64;
    return offset;
  };
  l.tasks = take(bounds.tasks * sizeof(AttentionTask));
  l.merges = take(bounds.merges * sizeof(AttentionMerge));
  l.partial_out = take(bounds.partial_rows * static_cast<std::size_t>(p.q.dim(-1)) * sizeof(float));
  l.partial_stats = take(bounds.partial_rows * 2 * sizeof(float));
  l.scratch = take(static_cast<std::size_t>(num_threads) * sizeof(AttentionScratch));
  return l;
}

Support supports(const AttentionParams& p, const PlanContext&) {
  const std::int64_t head_dim = p.q.dim(-1);
  if (head_dim % 8 != 0 || head_dim > kMaxHeadDim)
    return Support::no(
        fmt::format("head_dim {}: this kernel takes multiples of 8 up to {}", head_dim, kMaxHeadDim));
  // Tasks count keys and rows in 32 bits.
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() - kKeyBlock;
  const std::int64_t tokens = ops::is_dense(p.tables) ? p.q.dim(1) : p.q.dim(0);
  if (const std::int64_t keys = ops::max_kv_len(p.tables, p.k), rows = tokens * p.q.dim(-2);
      std::max(keys, rows) > kMost)
    return Support::no(fmt::format("{} keys, {} query rows: this kernel takes up to {}", keys, rows, kMost));
  return Support::yes();
}

std::size_t workspace(const AttentionParams& p, const PlanContext& ctx) {
  return layout(p, ctx.num_threads).total;
}

void run(const AttentionParams& p, const RunContext& ctx) {
  const Layout l = layout(p, ctx.num_threads);
  char* const base = static_cast<char*>(ctx.workspace);
  const Schedule schedule = make_schedule(p, reinterpret_cast<AttentionTask*>(base + l.tasks),
                                          reinterpret_cast<AttentionMerge*>(base + l.merges));
  const AttentionPartials partials{reinterpret_cast<float*>(base + l.partial_out),
                                   reinterpret_cast<float*>(base + l.partial_stats)};
  AttentionScratch* const scratch = reinterpret_cast<AttentionScratch*>(base + l.scratch);

#pragma omp parallel num_threads(ctx.num_threads)
  {
    AttentionScratch& mine = scratch[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1)
    for (std::size_t i = 0; i < schedule.tasks.size(); ++i) attend(p, schedule.tasks[i], partials, mine);
#pragma omp for schedule(static)
    for (std::size_t i = 0; i < schedule.merges.size(); ++i) merge_partials(p, schedule.merges[i], partials);
  }
}

}  // namespace

Kernel attention_flash() {
  return make_kernel<AttentionParams>("cpu::attention_flash", kFused,
                                      fmt::format("head_dim a multiple of 8 up to {}", kMaxHeadDim), supports,
                                      run, workspace);
}

}  // namespace kf::cpu
