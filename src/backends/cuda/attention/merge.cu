#include "backends/cuda/attention/attention.h"
#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

struct MergeRows {
  const void* out;
  const float* lse;
  std::int64_t out_outer, out_token, out_head, lse_outer, lse_token, lse_head;
};

struct MergeArgs {
  MergeRows a, b, to;
  std::int64_t num_rows;
  int tokens, heads, dim;  // tokens: of a sequence
};

MergeRows rows_of(const TensorView& out, const TensorView& lse) {
  const bool dense = out.rank == 4;
  MergeRows r{};
  r.out = out.data;
  r.out_outer = dense ? out.stride(0) : 0;
  r.out_token = out.stride(dense ? 1 : 0);
  r.out_head = out.stride(dense ? 2 : 1);
  if (!lse.present()) return r;
  r.lse = static_cast<const float*>(lse.data);
  r.lse_outer = dense ? lse.stride(0) : 0;
  r.lse_head = lse.stride(dense ? 1 : 0);
  r.lse_token = lse.stride(dense ? 2 : 1);
  return r;
}

constexpr int kThreads = 128, kRowsOfBlock = kThreads / kWarp;

// A warp a row. All of a lane's elements of both parts are read before any is written: out may be either of them.
template <class T>
__global__ __launch_bounds__(kThreads) void merge_kernel(const __grid_constant__ MergeArgs args) {
  const MergeArgs& m = first_argument(args);
  wait_for_predecessor();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kWarp;
  if (row >= m.num_rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int head = static_cast<int>(row % m.heads), token = static_cast<int>(row / m.heads % m.tokens);
  const std::int64_t outer = row / m.heads / m.tokens;
  const auto lse_at = [&](const MergeRows& r) {
    return outer * r.lse_outer + token * r.lse_token + head * r.lse_head;
  };
  const auto out_at = [&](const MergeRows& r) {
    return outer * r.out_outer + token * r.out_token + head * r.out_head;
  };
  const float a = m.a.lse[lse_at(m.a)], b = m.b.lse[lse_at(m.b)];
  const float top = isnan(a) || isnan(b) ? NAN : fmaxf(a, b);
  const bool none = top == -INFINITY;
  const float ea = none ? 0.0f : expf(a - top), eb = none ? 0.0f : expf(b - top), sum = ea + eb;
  const float wa = none ? 0.0f : ea / sum, wb = none ? 0.0f : eb / sum;
  const T *const from_a = static_cast<const T*>(m.a.out) + out_at(m.a), *const from_b =
                                                                            static_cast<const T*>(m.b.out) +
                                                                            out_at(m.b);
  T* const to = static_cast<T*>(const_cast<void*>(m.to.out)) + out_at(m.to);
  for (int d = lane; d < m.dim; d += kWarp) {
    float v = 0;
    if (a != -INFINITY) v = wa * widen(from_a[d]);
    if (b != -INFINITY) v = fmaf(wb, widen(from_b[d]), v);
    to[d] = narrow<T>(v);
  }
  sync_warp();  // all have read both
  if (lane == 0 && m.to.lse) const_cast<float*>(m.to.lse)[lse_at(m.to)] = none ? -INFINITY : top + logf(sum);
}

}  // namespace

Support merge_attention_supports(const MergeAttentionParams& p, const PlanContext&) {
  return heads_fit(p.out.numel() / (p.out.dim(-1) > 0 ? p.out.dim(-1) : 1), 1, p.out.dim(-1));
}

void merge_attention_run(const MergeAttentionParams& p, const RunContext& ctx) {
  if (p.out.numel() == 0) return;
  const bool dense = p.out.rank == 4;
  MergeArgs m{rows_of(p.out_a, p.lse_a), rows_of(p.out_b, p.lse_b), rows_of(p.out, p.lse), 0, 0, 0, 0};
  m.tokens = static_cast<int>(p.out.dim(dense ? 1 : 0));
  m.heads = static_cast<int>(p.out.dim(-2));
  m.dim = static_cast<int>(p.out.dim(-1));
  m.num_rows = p.out.numel() / m.dim;
  const Launch launch(p.out, ctx);
  const auto kernel = p.out.dtype == DType::f32   ? merge_kernel<float>
                      : p.out.dtype == DType::f16 ? merge_kernel<F16>
                                                  : merge_kernel<Bf16>;
  launch(kernel, dim3(static_cast<unsigned>((m.num_rows + kRowsOfBlock - 1) / kRowsOfBlock)), dim3(kThreads),
         0, m);
}

}  // namespace kf::cuda
