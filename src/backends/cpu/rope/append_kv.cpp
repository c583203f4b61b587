#include "backends/cpu/rope/append_kv.h"

#include "backends/cpu/parallel.h"
#include "backends/cpu/rope/heads.h"

namespace kf::cpu {
void append_kv_run(const AppendKvParams& p, const RunContext& ctx) {
  if (p.k.numel() == 0) return;
  const std::int64_t num_heads = p.k.dim(1), head_dim = p.k.dim(2);
  parallel_ranges(
      ctx.num_threads, p.k.dim(0), 2 * num_heads * head_dim, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t) {
          const std::int64_t slot = slot_of(p.slot_mapping, t);
          if (slot < 0) continue;
          copy_heads(heads_of(p.k, t), heads_of_slot(p.k_cache, p.kv_layout, slot), num_heads, head_dim);
          copy_heads(heads_of(p.v, t), heads_of_slot(p.v_cache, p.kv_layout, slot), num_heads, head_dim);
        }
      });
}

}  // namespace kf::cpu
