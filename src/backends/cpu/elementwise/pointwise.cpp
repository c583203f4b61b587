#include "backends/cpu/elementwise/pointwise.h"

#include <algorithm>

#include "backends/cpu/elementwise/pointwise_elements.h"
#include "backends/cpu/elementwise/quantize.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "backends/cpu/simd/convert_row.h"
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

// Each row as f32 in a thread's part of the workspace, where `f` is applied to it.
std::size_t quantized_workspace(const TensorView& a, const TensorView& b, const PlanContext& ctx) {
  const std::int64_t rows = b.present() && b.dtype != DType::f32 ? 2 : 1;
  return static_cast<std::size_t>(rows * row_floats(a)) * sizeof(float) *
         static_cast<std::size_t>(ctx.num_threads);
}

template <class F>
void quantized_run(const TensorView& a, const TensorView& b, const TensorView& out,
                   const OutputQuantization& q, const RunContext& ctx, const F& f) {
  if (out.numel() == 0)
    return quantize_rows(DType::f32, out, q, ctx, [](std::int64_t, int) { return nullptr; });
  const RowOffsets a_rows(a), b_rows(b);
  const std::int64_t n = a.dim(-1), room = row_floats(a);
  const std::int64_t parts = b.present() && b.dtype != DType::f32 ? 2 : 1;
  const auto f32_row = [n](const TensorView& t, std::int64_t offset, float* buffer) -> const void* {
    if (t.dtype == DType::f32) return t.at(offset);
    convert_row(t.dtype, t.at(offset), DType::f32, buffer, n);
    return buffer;
  };
  quantize_rows(DType::f32, out, q, ctx, [&](std::int64_t row, int thread) {
    float* const y = static_cast<float*>(ctx.workspace) + thread * parts * room;
    Elements e;
    e.a = f32_row(a, a_rows(row), y);
    if (b.present()) e.b = f32_row(b, b_rows(row), y + room);
    e.out = y;
    e.n = n;
    e.dtype = DType::f32;
    f(e);
    return y;
  });
}

}  // namespace

void binary_run(const BinaryParams& p, const RunContext& ctx) {
  for_each_run(p.a, p.b, p.out, ctx, [&](const Elements& e) { binary_elements(p.kind, e); });
}

Support activation_supports(const ActivationParams& p, const PlanContext&) {
  return not_quantized(p.quantization);
}
void activation_run(const ActivationParams& p, const RunContext& ctx) {
  for_each_run(p.x, {}, p.out, ctx, [&](const Elements& e) { activation_elements(p.kind, e); });
}

Support activation_quantized_supports(const ActivationParams& p, const PlanContext&) {
  return quantized(p.quantization);
}
std::size_t activation_quantized_workspace(const ActivationParams& p, const PlanContext& ctx) {
  return quantized_workspace(p.x, {}, ctx);
}
void activation_quantized_run(const ActivationParams& p, const RunContext& ctx) {
  quantized_run(p.x, {}, p.out, p.quantization, ctx,
                [&](const Elements& e) { activation_elements(p.kind, e); });
}

Support gated_activation_supports(const GatedActivationParams& p, const PlanContext&) {
  return not_quantized(p.quantization);
}
void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx) {
  for_each_run(p.gate, p.up, p.out, ctx, [&](const Elements& e) { gated_elements(p.kind, e); });
}

Support gated_activation_quantized_supports(const GatedActivationParams& p, const PlanContext&) {
  return quantized(p.quantization);
}
std::size_t gated_activation_quantized_workspace(const GatedActivationParams& p, const PlanContext& ctx) {
  return quantized_workspace(p.gate, p.up, ctx);
}
void gated_activation_quantized_run(const GatedActivationParams& p, const RunContext& ctx) {
  quantized_run(p.gate, p.up, p.out, p.quantization, ctx,
                [&](const Elements& e) { gated_elements(p.kind, e); });
}

}  // namespace kf::cpu
