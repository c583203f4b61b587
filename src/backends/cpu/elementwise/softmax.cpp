#include "backends/cpu/elementwise/softmax.h"

#include <limits>

#include "backends/cpu/elementwise/softmax_row.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/simd/stream.h"

namespace kf::cpu {
namespace {

// Floats of one thread's exponentials: whole cache lines.
std::int64_t row_buffer(const TensorView& x) { return (x.dim(-1) + 15) / 16 * 16; }

}  // namespace

std::size_t softmax_workspace(const SoftmaxParams& p, const PlanContext& ctx) {
  return static_cast<std::size_t>(row_buffer(p.x)) * sizeof(float) *
         static_cast<std::size_t>(ctx.num_threads);
}

namespace {

// Rows of no elements.
void put_lse_of_nothing(const SoftmaxParams& p) {
  if (!p.lse.present()) return;
  const RowOffsets lse_rows(p.lse, 0);
  for (std::int64_t row = 0; row < num_rows(p.x); ++row)
    p.lse.as<float>()[lse_rows(row)] = -std::numeric_limits<float>::infinity();
}

void masked_softmax_run(const SoftmaxParams& p, const RunContext& ctx) {
  const std::int64_t n = p.x.dim(-1), buffer = row_buffer(p.x);
  const TensorView mask = broadcast_to(p.mask, p.x);
  const RowOffsets x_rows(p.x), out_rows(p.out), lse_rows(p.lse, 0), mask_rows(mask);
  // The stride of a dimension of one says nothing.
  const std::int64_t step = p.mask.dim(-1) != 1 ? 1 : 0;
  const bool stream = streams(p.out, {&p.x});
  parallel_ranges(ctx.num_threads, num_rows(p.x), n, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* exponentials = static_cast<float*>(ctx.workspace) + thread * buffer;
    for (std::int64_t row = begin; row < end; ++row) {
      const float lse =
          masked_softmax_row(p.x.dtype, p.x.at(x_rows(row)), {mask.dtype, mask.at(mask_rows(row)), step},
                             p.out.at(out_rows(row)), n, p.scale, exponentials, stream);
      if (p.lse.present()) p.lse.as<float>()[lse_rows(row)] = lse;
    }
  });
}

}  // namespace

void softmax_run(const SoftmaxParams& p, const RunContext& ctx) {
  if (p.x.dim(-1) == 0) return put_lse_of_nothing(p);
  if (p.mask.present()) return masked_softmax_run(p, ctx);
  const std::int64_t buffer = row_buffer(p.x);
  const SoftmaxRows rows{.x = p.x,
                         .out = p.out,
                         .lse = p.lse,
                         .x_rows = RowOffsets(p.x),
                         .out_rows = RowOffsets(p.out),
                         .lse_rows = RowOffsets(p.lse, 0),
                         .n = p.x.dim(-1),
                         .scale = p.scale,
                         .stream = streams(p.out, {&p.x}),
                         .fetch_next = fetches_next_row(p.x)};
  parallel_ranges(ctx.num_threads, num_rows(p.x), rows.n,
                  [&](std::int64_t begin, std::int64_t end, int thread) {
                    softmax_rows(rows, begin, end, static_cast<float*>(ctx.workspace) + thread * buffer);
                  });
}

}  // namespace kf::cpu
