#include "backends/cpu/norm/norm.h"

#include <array>

#include "backends/cpu/elementwise/quantize.h"
#include "backends/cpu/norm/norm_rows.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/convert_row.h"
#include "backends/cpu/simd/stream.h"

namespace kf::cpu {
namespace {

// What the two norms do not have in common.
struct Affine {
  const TensorView& weight;
  TensorView bias;
  float weight_offset;
};
Affine affine_of(const RmsNormParams& p) { return {p.weight, {}, p.weight_offset}; }
Affine affine_of(const LayerNormParams& p) { return {p.weight, p.bias, 0.0f}; }

// Weight and bias of x's dtype are read as they are; others are made f32 once a call, in the workspace.
bool as_they_are(const TensorView& x, const Affine& a) {
  return a.weight.dtype == x.dtype && (!a.bias.present() || a.bias.dtype == x.dtype) &&
         a.weight_offset == 0.0f;
}

template <class P>
Workspace weight_parts(const P& p) {
  Workspace parts(nullptr);
  if (const Affine a = affine_of(p); !as_they_are(p.x, a)) {
    widen(a.weight, parts, a.weight_offset);
    widen(a.bias, parts);
  }
  return parts;
}

template <class P>
Support plain_only(const P& p) {
  return p.residual.present() ? Support::no("residual given: this kernel takes none")
                              : not_quantized(p.quantization);
}

// What the rows of a call are made of, but for `out`.
template <class P>
NormRows rows_of(const P& p, bool centred, Workspace& parts) {
  const Affine affine = affine_of(p);
  NormRows rows;
  rows.x = p.x;
  rows.residual = p.residual;
  rows.residual_out = p.residual_out;
  rows.x_rows = RowOffsets(p.x);
  rows.residual_rows = RowOffsets(p.residual);
  rows.residual_out_rows = RowOffsets(p.residual_out);
  if (as_they_are(p.x, affine)) {
    rows.weight_dtype = p.x.dtype;
    rows.weight = p.weight.data;
    rows.bias = affine.bias.present() ? affine.bias.data : nullptr;
  } else {
    rows.weight_dtype = DType::f32;
    rows.weight = widen(p.weight, parts, affine.weight_offset);
    rows.bias = widen(affine.bias, parts);
  }
  rows.n = p.x.dim(-1);
  rows.eps = p.eps;
  rows.centred = centred;
  rows.num_rows = num_rows(p.x);
  rows.fetch_next = fetches_next_row(p.x);
  return rows;
}

template <class P>
void run_norm(const P& p, bool centred, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  Workspace parts(ctx.workspace);
  NormRows rows = rows_of(p, centred, parts);
  rows.out = p.out;
  rows.out_rows = RowOffsets(p.out);
  rows.stream = streams(p.out, {&p.x, &p.residual});
  parallel_ranges(ctx.num_threads, rows.num_rows, rows.n,
                  [&](std::int64_t begin, std::int64_t end, int) { norm_rows(rows, begin, end); });
}

template <class P>
std::size_t quantized_workspace_bytes(const P& p, const PlanContext& ctx) {
  Workspace parts = weight_parts(p);
  parts.take<float>(static_cast<std::size_t>(row_floats(p.x) * ctx.num_threads));
  return parts.bytes();
}

// Each row as f32 in a thread's part of the workspace, and from there in 8 bits.
template <class P>
void run_quantized(const P& p, bool centred, const RunContext& ctx) {
  Workspace parts(ctx.workspace);
  const NormRows call = rows_of(p, centred, parts);
  const std::int64_t room = row_floats(p.x);
  float* const buffers = parts.take<float>(static_cast<std::size_t>(room * ctx.num_threads));
  quantize_rows(DType::f32, p.out, p.quantization, ctx, [&](std::int64_t row, int thread) {
    float* const y = buffers + thread * room;
    NormRows rows = call;
    rows.out = TensorView::contiguous(y, DType::f32, std::array{call.n});
    norm_rows(rows, row, row + 1);
    return y;
  });
}

}  // namespace

Support rms_norm_plain_supports(const RmsNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t rms_norm_workspace(const RmsNormParams& p, const PlanContext&) { return weight_parts(p).bytes(); }
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx) { run_norm(p, /*centred=*/false, ctx); }
Support rms_norm_residual_supports(const RmsNormParams& p, const PlanContext&) {
  return not_quantized(p.quantization);
}
Support rms_norm_quantized_supports(const RmsNormParams& p, const PlanContext&) {
  return quantized(p.quantization);
}
std::size_t rms_norm_quantized_workspace(const RmsNormParams& p, const PlanContext& ctx) {
  return quantized_workspace_bytes(p, ctx);
}
void rms_norm_quantized_run(const RmsNormParams& p, const RunContext& ctx) {
  run_quantized(p, /*centred=*/false, ctx);
}

Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t layer_norm_workspace(const LayerNormParams& p, const PlanContext&) {
  return weight_parts(p).bytes();
}
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx) { run_norm(p, /*centred=*/true, ctx); }
Support layer_norm_residual_supports(const LayerNormParams& p, const PlanContext&) {
  return not_quantized(p.quantization);
}
Support layer_norm_quantized_supports(const LayerNormParams& p, const PlanContext&) {
  return quantized(p.quantization);
}
std::size_t layer_norm_quantized_workspace(const LayerNormParams& p, const PlanContext& ctx) {
  return quantized_workspace_bytes(p, ctx);
}
void layer_norm_quantized_run(const LayerNormParams& p, const RunContext& ctx) {
  run_quantized(p, /*centred=*/true, ctx);
}

}  // namespace kf::cpu
