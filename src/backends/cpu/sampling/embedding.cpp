#include "backends/cpu/sampling/embedding.h"

#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/convert_row.h"

namespace kf::cpu {

void embedding_run(const EmbeddingParams& p, const RunContext& ctx) {
  const std::int64_t hidden = p.table.dim(1);
  if (hidden == 0) return;
  parallel_ranges(ctx.num_threads, p.ids.dim(0), hidden, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t id = p.ids.as<std::int32_t>()[t * p.ids.stride(0)];
      convert_row(p.table.dtype, p.table.at(id * p.table.stride(0)), p.out.dtype,
                  p.out.at(t * p.out.stride(0)), hidden);
    }
  });
}

}  // namespace kf::cpu
