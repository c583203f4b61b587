#include "backends/cpu/elementwise/dequantize.h"

#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/convert_row.h"

namespace kf::cpu {

void dequantize_run(const DequantizeParams& p, const RunContext& ctx) {
  const std::int64_t n = p.x.dim(1);
  if (n == 0) return;
  parallel_ranges(ctx.num_threads, p.x.dim(0), n, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row)
      convert_row(p.x.dtype, p.x.at(row * p.x.stride(0)), p.out.dtype, p.out.at(row * p.out.stride(0)), n);
  });
}

}  // namespace kf::cpu
