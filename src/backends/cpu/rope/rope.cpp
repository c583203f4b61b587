#include "backends/cpu/rope/rope.h"

#include <fmt/format.h>

#include "backends/cpu/parallel.h"
#include "backends/cpu/rope/heads.h"
#include "backends/cpu/rope/rotate_heads.h"
#include "backends/cpu/simd/convert_row.h"

namespace kf::cpu {
namespace {

Support head_dim_fits(std::int64_t head_dim) {
  if (head_dim <= kMaxRopeHeadDim) return Support::yes();
  return Support::no(fmt::format("head_dim {}: this kernel takes up to {}", head_dim, kMaxRopeHeadDim));
}

// Norm weights are widened to f32 once a call.
std::size_t widened_bytes(const TensorView& weight) {
  return weight.present() ? static_cast<std::size_t>(weight.numel()) * sizeof(float) : 0;
}

const float* widen(const TensorView& weight, float* workspace) {
  if (!weight.present()) return nullptr;
  convert_row(weight.dtype, weight.data, DType::f32, workspace, weight.numel());
  return workspace;
}

// The rotation of one token's heads; RopeParams and RopeAppendParams name the tables alike.
template <class P>
Rotation rotation_of(const P& p, std::int64_t token, const float* norm_weight) {
  const std::int64_t position = p.positions.template as<std::int32_t>()[token * p.positions.stride(0)];
  return {p.cos.template as<float>() + position * p.cos.stride(0),
          p.sin.template as<float>() + position * p.sin.stride(0),
          p.cos.dim(1),
          p.interleaved,
          norm_weight,
          p.norm_eps};
}

}  // namespace

Support rope_supports(const RopeParams& p, const PlanContext&) { return head_dim_fits(p.x.dim(2)); }

Support rope_plain_supports(const RopeParams& p, const PlanContext& ctx) {
  if (p.norm_weight.present()) return Support::no("norm_weight given: this kernel takes none");
  return rope_supports(p, ctx);
}

std::size_t rope_workspace(const RopeParams& p, const PlanContext&) { return widened_bytes(p.norm_weight); }

void rope_run(const RopeParams& p, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  const std::int64_t num_heads = p.x.dim(1), head_dim = p.x.dim(2);
  const float* norm_weight = widen(p.norm_weight, static_cast<float*>(ctx.workspace));
  parallel_ranges(ctx.num_threads, p.x.dim(0), num_heads * head_dim,
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t)
                      rotate_heads(rotation_of(p, t, norm_weight), heads_of(p.x, t), heads_of(p.out, t),
                                   num_heads, head_dim);
                  });
}

Support rope_append_supports(const RopeAppendParams& p, const PlanContext&) {
  return head_dim_fits(p.q.dim(2));
}

std::size_t rope_append_workspace(const RopeAppendParams& p, const PlanContext&) {
  return widened_bytes(p.q_norm_weight) + widened_bytes(p.k_norm_weight);
}

void rope_append_run(const RopeAppendParams& p, const RunContext& ctx) {
  if (p.q.numel() == 0 && p.k.numel() == 0) return;
  const std::int64_t num_heads = p.q.dim(1), num_kv_heads = p.k.dim(1), head_dim = p.q.dim(2);
  auto* workspace = static_cast<float*>(ctx.workspace);
  const float* q_norm_weight = widen(p.q_norm_weight, workspace);
  const float* k_norm_weight = widen(p.k_norm_weight, q_norm_weight ? workspace + head_dim : workspace);
  const std::int64_t elements = (num_heads + 2 * num_kv_heads) * head_dim;
  parallel_ranges(ctx.num_threads, p.q.dim(0), elements, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      rotate_heads(rotation_of(p, t, q_norm_weight), heads_of(p.q, t), heads_of(p.q_out, t), num_heads,
                   head_dim);
      const std::int64_t slot = slot_of(p.slot_mapping, t);
      if (slot < 0) continue;
      rotate_heads(rotation_of(p, t, k_norm_weight), heads_of(p.k, t),
                   heads_of_slot(p.k_cache, p.kv_layout, slot), num_kv_heads, head_dim);
      copy_heads(heads_of(p.v, t), heads_of_slot(p.v_cache, p.kv_layout, slot), num_kv_heads, head_dim);
    }
  });
}

}  // namespace kf::cpu
