#include "backends/cpu/norm/norm.h"

#include "backends/cpu/norm/norm_rows.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/convert_row.h"
#include "backends/cpu/simd/stream.h"

namespace kf::cpu {
namespace {

// Weights of 16-bit dtypes are widened once a call, into the workspace.
std::size_t widened_bytes(const TensorView& weight) {
  return weight.present() && weight.dtype != DType::f32
             ? static_cast<std::size_t>(weight.numel()) * sizeof(float)
             : 0;
}

const float* widen(const TensorView& weight, float*& workspace) {
  if (!weight.present()) return nullptr;
  if (weight.dtype == DType::f32) return weight.as<float>();
  float* wide = workspace;
  workspace += weight.numel();
  convert_row(weight.dtype, weight.data, DType::f32, wide, weight.numel());
  return wide;
}

template <class P>
Support plain_only(const P& p) {
  return p.residual.present() ? Support::no("residual given: this kernel takes none") : Support::yes();
}

template <class P>
void run_norm(const P& p, const TensorView& bias, bool centred, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  NormRows rows;
  rows.x = p.x;
  rows.residual = p.residual;
  rows.out = p.out;
  rows.residual_out = p.residual_out;
  rows.x_rows = RowOffsets(p.x);
  rows.residual_rows = RowOffsets(p.residual);
  rows.out_rows = RowOffsets(p.out);
  rows.residual_out_rows = RowOffsets(p.residual_out);
  auto* workspace = static_cast<float*>(ctx.workspace);
  rows.weight = widen(p.weight, workspace);
  rows.bias = widen(bias, workspace);
  rows.n = p.x.dim(-1);
  rows.eps = p.eps;
  rows.centred = centred;
  rows.stream = streams(p.out, {&p.x, &p.residual});
  parallel_ranges(ctx.num_threads, num_rows(p.x), rows.n,
                  [&](std::int64_t begin, std::int64_t end, int) { norm_rows(rows, begin, end); });
}

}  // namespace

Support rms_norm_plain_supports(const RmsNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t rms_norm_workspace(const RmsNormParams& p, const PlanContext&) { return widened_bytes(p.weight); }
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx) { run_norm(p, {}, /*centred=*/false, ctx); }

Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext&) { return plain_only(p); }
std::size_t layer_norm_workspace(const LayerNormParams& p, const PlanContext&) {
  return widened_bytes(p.weight) + widened_bytes(p.bias);
}
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx) {
  run_norm(p, p.bias, /*centred=*/true, ctx);
}

}  // namespace kf::cpu
