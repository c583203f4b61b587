#include "backends/cpu/norm/norm.h"

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
std::size_t workspace_bytes(const P& p) {
  Workspace parts(nullptr);
  if (const Affine a = affine_of(p); !as_they_are(p.x, a)) {
    widen(a.weight, parts, a.weight_offset);
    widen(a.bias, parts);
  }
  return parts.bytes();
}

template <class P>
Support plain_only(const P& p) {
  return p.residual.present() ? Support::no("residual given: this kernel takes none") : Support::yes();
}

template <class P>
void run_norm(const P& p, bool centred, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  const Affine affine = affine_of(p);
  NormRows rows;
  rows.x = p.x;
  rows.residual = p.residual;
  rows.out = p.out;
  rows.residual_out = p.residual_out;
  rows.x_rows = RowOffsets(p.x);
  rows.residual_rows = RowOffsets(p.residual);
  rows.out_rows = RowOffsets(p.out);
  rows.residual_out_rows = RowOffsets(p.residual_out);
  if (as_they_are(p.x, affine)) {
    rows.weight_dtype = p.x.dtype;
    rows.weight = p.weight.data;
    rows.bias = affine.bias.present() ? affine.bias.data : nullptr;
  } else {
    Workspace parts(ctx.workspace);
    rows.weight_dtype = DType::f32;
    rows.weight = widen(p.weight, parts, affine.weight_offset);
    rows.bias = widen(affine.bias, parts);
  }
  rows.n = p.x.dim(-1);
  rows.eps = p.eps;
  rows.centred = centred;
  rows.stream = streams(p.out, {&p.x, &p.residual});
  rows.fetch_next = fetches_next_row(p.x);
  parallel_ranges(ctx.num_threads, num_rows(p.x), rows.n,
                  [&](std::int64_t begin, std::int64_t end, int) { norm_rows(rows, begin, end); });
}

}  // namespace

Support rms_norm_plain_supports(const RmsNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t rms_norm_workspace(const RmsNormParams& p, const PlanContext&) { return workspace_bytes(p); }
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx) { run_norm(p, /*centred=*/false, ctx); }

Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t layer_norm_workspace(const LayerNormParams& p, const PlanContext&) { return workspace_bytes(p); }
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx) { run_norm(p, /*centred=*/true, ctx); }

}  // namespace kf::cpu
