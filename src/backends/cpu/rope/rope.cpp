#include "backends/cpu/rope/rope.h"

#include <fmt/format.h>

#include "backends/cpu/parallel.h"
#include "backends/cpu/rope/cache_slots.h"
#include "backends/cpu/rope/rotate_heads.h"
#include "backends/cpu/simd/convert_row.h"

namespace kf::cpu {
namespace {

Support head_dim_fits(std::int64_t head_dim) {
  if (head_dim <= kMaxRopeHeadDim) return Support::yes();
  return Support::no(fmt::format("head_dim {}: this kernel takes up to {}", head_dim, kMaxRopeHeadDim));
}

// Norm weights are made f32 once a call.
struct NormWeights {
  const float* q;
  const float* k;
  std::size_t bytes;

  NormWeights(void* workspace, float offset, const TensorView& q_weight, const TensorView& k_weight = {}) {
    Workspace parts(workspace);
    q = widen(q_weight, parts, offset);
    k = widen(k_weight, parts, offset);
    bytes = parts.bytes();
  }
};

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

std::size_t rope_workspace(const RopeParams& p, const PlanContext&) {
  return NormWeights(nullptr, p.norm_weight_offset, p.norm_weight).bytes;
}

void rope_run(const RopeParams& p, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  const std::int64_t num_heads = p.x.dim(1), head_dim = p.x.dim(2);
  const NormWeights norms(ctx.workspace, p.norm_weight_offset, p.norm_weight);
  parallel_ranges(
      ctx.num_threads, p.x.dim(0), num_heads * head_dim, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t t = begin; t < end; ++t)
          rotate_heads(rotation_of(p, t, norms.q), heads_of(p.x, t), heads_of(p.out, t), num_heads, head_dim);
      });
}

Support rope_append_supports(const RopeAppendParams& p, const PlanContext&) {
  return head_dim_fits(p.q.dim(2));
}

// The workspace: norm weights, whose parts are whole lines, then a token's heads of each thread.
std::size_t rope_append_workspace(const RopeAppendParams& p, const PlanContext& ctx) {
  return NormWeights(nullptr, p.norm_weight_offset, p.q_norm_weight, p.k_norm_weight).bytes +
         SlotScratch(nullptr, p.k, p.k_cache, ctx.num_threads).bytes();
}

void rope_append_run(const RopeAppendParams& p, const RunContext& ctx) {
  if (p.q.numel() == 0 && p.k.numel() == 0) return;
  const std::int64_t num_heads = p.q.dim(1), num_kv_heads = p.k.dim(1), head_dim = p.q.dim(2);
  const NormWeights norms(ctx.workspace, p.norm_weight_offset, p.q_norm_weight, p.k_norm_weight);
  const SlotScratch scratch(static_cast<char*>(ctx.workspace) + norms.bytes, p.k, p.k_cache, ctx.num_threads);
  const CacheSlots k_slots(p.k_cache, p.k_cache_quantization, p.kv_layout),
      v_slots(p.v_cache, p.v_cache_quantization, p.kv_layout);
  const std::int64_t elements = (num_heads + 2 * num_kv_heads) * head_dim;
  parallel_ranges(
      ctx.num_threads, p.q.dim(0), elements, [&](std::int64_t begin, std::int64_t end, int thread) {
        for (std::int64_t t = begin; t < end; ++t) {
          rotate_heads(rotation_of(p, t, norms.q), heads_of(p.q, t), heads_of(p.q_out, t), num_heads,
                       head_dim);
          const std::int64_t slot = slot_of(p.slot_mapping, t);
          if (slot < 0) continue;
          float* const heads = scratch.of_thread(thread);
          k_slots.write(slot, num_kv_heads, heads, [&](const Heads& to) {
            rotate_heads(rotation_of(p, t, norms.k), heads_of(p.k, t), to, num_kv_heads, head_dim);
          });
          v_slots.write(slot, num_kv_heads, heads,
                        [&](const Heads& to) { copy_heads(heads_of(p.v, t), to, num_kv_heads, head_dim); });
        }
      });
}

}  // namespace kf::cpu
