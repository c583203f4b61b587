#include "backends/cpu/rope/append_kv.h"

#include "backends/cpu/parallel.h"
#include "backends/cpu/rope/cache_slots.h"

namespace kf::cpu {

std::size_t append_kv_workspace(const AppendKvParams& p, const PlanContext& ctx) {
  return SlotScratch(nullptr, p.k, p.k_cache, ctx.num_threads).bytes();
}

void append_kv_run(const AppendKvParams& p, const RunContext& ctx) {
  if (p.k.numel() == 0) return;
  const std::int64_t num_heads = p.k.dim(1), head_dim = p.k.dim(2);
  const CacheSlots k_slots(p.k_cache, p.k_cache_quantization, p.kv_layout),
      v_slots(p.v_cache, p.v_cache_quantization, p.kv_layout);
  const SlotScratch scratch(ctx.workspace, p.k, p.k_cache, ctx.num_threads);
  parallel_ranges(ctx.num_threads, p.k.dim(0), 2 * num_heads * head_dim,
                  [&](std::int64_t begin, std::int64_t end, int thread) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      const std::int64_t slot = slot_of(p.slot_mapping, t);
                      if (slot < 0) continue;
                      const auto write = [&](const CacheSlots& slots, const TensorView& x) {
                        slots.write(slot, num_heads, scratch.of_thread(thread), [&](const Heads& to) {
                          copy_heads(heads_of(x, t), to, num_heads, head_dim);
                        });
                      };
                      write(k_slots, p.k);
                      write(v_slots, p.v);
                    }
                  });
}

}  // namespace kf::cpu
