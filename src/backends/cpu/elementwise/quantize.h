// Rows in 8 bits: of a tensor, and of what an op makes.
#pragma once

#include <cstddef>

#include "backends/cpu/elementwise/quantize_row.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "kf/kernel.h"
#include "kf/ops/elementwise.h"

namespace kf::cpu {

void quantize_run(const QuantizeParams& p, const RunContext& ctx);

// Quantized outputs and unquantized ones have rows of their own.
inline Support not_quantized(const OutputQuantization& q) {
  return q.present() ? Support::no("out_dtype given: this kernel writes out in x's dtype") : Support::yes();
}
inline Support quantized(const OutputQuantization& q) {
  return q.present() ? Support::yes() : Support::no("no out_dtype: this kernel writes 8-bit codes");
}

// Floats of one row, for a thread: whole cache lines.
inline std::int64_t row_floats(const TensorView& out) { return (out.dim(-1) + 15) / 16 * 16; }

// For every row of `out`: its values, `make(row, thread)`, which may lie in the thread's own memory, to codes and scale.
template <class Make>
void quantize_rows(DType values, const TensorView& out, const OutputQuantization& q, const RunContext& ctx,
                   const Make& make) {
  const std::int64_t n = out.dim(-1);
  const RowOffsets out_rows(out), scale_rows(q.scales, 0);
  const float given = q.static_scale.present() ? *q.static_scale.as<float>() : 0.0f;
  parallel_ranges(ctx.num_threads, num_rows(out), n, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float scale = quantize_row(values, make(row, thread), out.dtype, out.at(out_rows(row)), n, given);
      if (q.dynamic()) q.scales.as<float>()[scale_rows(row)] = scale;
    }
  });
}

}  // namespace kf::cpu
