#include "graph/memory_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace kf {
namespace {

std::size_t aligned(std::size_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

struct Placed {
  std::size_t begin, end;
  int first, last;
};

}  // namespace

MemoryPlan plan_memory(std::span<const BlockLife> blocks) {
  MemoryPlan plan;
  plan.offsets.assign(blocks.size(), 0);
  std::vector<std::size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return blocks[a].bytes > blocks[b].bytes; });

  std::vector<Placed> placed;  // by begin
  placed.reserve(blocks.size());
  for (std::size_t i : order) {
    const BlockLife& b = blocks[i];
    const std::size_t bytes = aligned(b.bytes);
    if (bytes == 0) continue;
    std::size_t best = 0, best_gap = std::numeric_limits<std::size_t>::max(), free_from = 0;
    for (const Placed& p : placed) {
      if (p.last < b.first || b.last < p.first) continue;
      if (p.begin >= free_from + bytes && p.begin - free_from < best_gap) {
        best = free_from;
        best_gap = p.begin - free_from;
      }
      free_from = std::max(free_from, p.end);
    }
    if (best_gap == std::numeric_limits<std::size_t>::max()) best = free_from;
    plan.offsets[i] = best;
    plan.arena_bytes = std::max(plan.arena_bytes, best + bytes);
    const Placed p{best, best + bytes, b.first, b.last};
    placed.insert(std::upper_bound(placed.begin(), placed.end(), p,
                                   [](const Placed& a, const Placed& c) { return a.begin < c.begin; }),
                  p);
  }
  return plan;
}

}  // namespace kf
