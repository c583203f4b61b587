#include "backends/cpu/elementwise/pointwise.h"

#include <algorithm>

#include "backends/cpu/elementwise/pointwise_elements.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/simd/stream.h"

namespace kf::cpu {
namespace {

// Tensors of one shape in runs of at most this many elements, which threads share.
constexpr std::int64_t kRun = 8192;

// Calls run(Elements) over all of out = f(a, b); `b` may be absent. Contiguous operands are one long row.
template <class F>
void for_each_run(const TensorView& a, const TensorView& b, const TensorView& out, const RunContext& ctx,
                  const F& run) {
  if (out.numel() == 0) return;
  const bool flat = a.is_contiguous() && out.is_contiguous() && (!b.present() || b.is_contiguous());
  const std::int64_t n = flat ? out.numel() : out.dim(-1);
  const std::int64_t rows = flat ? 1 : num_rows(out), runs_per_row = (n + kRun - 1) / kRun;
  const auto offsets = [&](const TensorView& t) { return flat ? RowOffsets() : RowOffsets(t); };
  const RowOffsets a_rows = offsets(a), b_rows = offsets(b), out_rows = offsets(out);
  const bool stream = streams(out, {&a, &b});
  parallel_ranges(ctx.num_threads, rows * runs_per_row, std::min(n, kRun),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      const std::int64_t row = i / runs_per_row, column = i % runs_per_row * kRun;
                      Elements e;
                      e.a = a.at(a_rows(row) + column);
                      if (b.present()) e.b = b.at(b_rows(row) + column);
                      e.out = out.at(out_rows(row) + column);
                      e.n = std::min(kRun, n - column);
                      e.dtype = out.dtype;
                      e.stream = stream;
                      run(e);
                    }
                  });
}

}  // namespace

void binary_run(const BinaryParams& p, const RunContext& ctx) {
  for_each_run(p.a, p.b, p.out, ctx, [&](const Elements& e) { binary_elements(p.kind, e); });
}

void activation_run(const ActivationParams& p, const RunContext& ctx) {
  for_each_run(p.x, {}, p.out, ctx, [&](const Elements& e) { activation_elements(p.kind, e); });
}

void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx) {
  for_each_run(p.gate, p.up, p.out, ctx, [&](const Elements& e) { gated_elements(p.kind, e); });
}

}  // namespace kf::cpu
