#include "backends/cpu/elementwise/quantize.h"

namespace kf::cpu {

void quantize_run(const QuantizeParams& p, const RunContext& ctx) {
  const RowOffsets x_rows(p.x);
  quantize_rows(p.x.dtype, p.out, p.quantization, ctx,
                [&](std::int64_t row, int) { return p.x.at(x_rows(row)); });
}

}  // namespace kf::cpu
