#include "backends/cpu/sampling/argmax.h"

#include "backends/cpu/parallel.h"
#include "backends/cpu/sampling/argmax_row.h"

namespace kf::cpu {

void argmax_run(const ArgmaxParams& p, const RunContext& ctx) {
  const std::int64_t vocab = p.logits.dim(1);
  parallel_ranges(ctx.num_threads, p.logits.dim(0), vocab, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const Largest largest = argmax_row(p.logits.dtype, p.logits.at(t * p.logits.stride(0)), vocab);
      p.ids.as<std::int32_t>()[t * p.ids.stride(0)] = largest.index;
      if (p.max.present()) p.max.as<float>()[t * p.max.stride(0)] = largest.value;
    }
  });
}

}  // namespace kf::cpu
