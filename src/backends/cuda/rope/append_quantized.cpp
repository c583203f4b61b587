#include "backends/cuda/rope/append_quantized.h"

#include <fmt/format.h>

#include "backends/cuda/rope/rope.h"
#include "backends/cuda/supports.h"
#include "core/quantized.h"

namespace kf::cuda {
namespace {

constexpr std::int64_t kMaxElements = 44 * 1024 / 4;  // a token's heads in shared memory

CachePlace place_of(const TensorView& t, int row_axis, int head_axis) {
  return {t.stride(0), t.stride(row_axis), t.stride(head_axis)};
}

QuantizedCache cache_of(const TensorView& cache, const Quantization& q, KvLayout layout) {
  const int row_axis = layout == KvLayout::hnd ? 2 : 1, head_axis = layout == KvLayout::hnd ? 1 : 2;
  QuantizedCache c{};
  c.data = cache.as<std::uint8_t>();
  c.dtype = cache.dtype;
  c.page_size = cache.dim(row_axis);
  c.num_pages = cache.dim(0);
  c.data_at = place_of(cache, row_axis, head_axis);
  c.scales = q.scales.data;
  c.scales_dtype = q.scales.dtype;
  c.scales_at = place_of(kv_broadcast(q.scales, cache), row_axis, head_axis);
  if (q.zeros.present()) {
    c.zeros = q.zeros.as<std::int8_t>();
    c.zeros_at = place_of(kv_broadcast(q.zeros, cache), row_axis, head_axis);
  }
  c.group = static_cast<int>(kv_group_size(cache, q));
  c.computes_scales = q.scales.dim(0) == cache.dim(0) && q.scales.dim(row_axis) == cache.dim(row_axis);
  c.heads_share = q.scales.dim(head_axis) == 1;
  return c;
}

HeadsSource source_of(const TensorView& x, bool rotate, const TensorView& norm_weight) {
  return {x.data, x.stride(0), x.stride(1), rotate, data_or_null(norm_weight), norm_weight.dtype};
}

template <class P>
AppendQuantizedArgs args_of(const P& p) {
  AppendQuantizedArgs a{};
  a.to[0] = cache_of(p.k_cache, p.k_cache_quantization, p.kv_layout);
  a.to[1] = cache_of(p.v_cache, p.v_cache_quantization, p.kv_layout);
  a.dtype = p.k.dtype;
  a.num_heads = static_cast<int>(p.k.dim(1));
  a.head_dim = static_cast<int>(p.k.dim(2));
  a.slots = p.slot_mapping.data;
  a.slots_stride = p.slot_mapping.stride(0);
  a.slots_are_64_bit = p.slot_mapping.dtype == DType::i64;
  return a;
}

template <class P>
Support supports_caches(const P& p) {
  if (!needs_scales(p.k_cache.dtype) || !needs_scales(p.v_cache.dtype))
    return Support::no(fmt::format("caches {} and {}: this kernel writes int4, i8 and fp8",
                                   dtype_name(p.k_cache.dtype), dtype_name(p.v_cache.dtype)));
  if (p.k.dim(1) * p.k.dim(2) > kMaxElements)
    return Support::no(fmt::format("{} heads of {}: this kernel holds up to {} elements of a token",
                                   p.k.dim(1), p.k.dim(2), kMaxElements));
  return heads_fit(p.k.dim(0), 2, p.k.dim(2));
}

template <class P>
bool is_empty(const P& p) {
  return p.k.numel() == 0 || p.k_cache.numel() == 0;
}

}  // namespace

Support append_kv_quantized_supports(const AppendKvParams& p, const PlanContext&) {
  return supports_caches(p);
}
void append_kv_quantized_run(const AppendKvParams& p, const RunContext& ctx) {
  if (is_empty(p)) return;
  AppendQuantizedArgs a = args_of(p);
  a.from[0] = source_of(p.k, false, {});
  a.from[1] = source_of(p.v, false, {});
  launch_append_quantized(a, p.k.dim(0), p.k_cache, ctx);
}

Support rope_append_quantized_supports(const RopeAppendParams& p, const PlanContext&) {
  if (const Support s = supports_caches(p); !s) return s;
  return heads_fit(p.q.dim(0), p.q.dim(1), p.q.dim(2));
}
// Keys and values first: q_out may be the memory of q, and of nothing else.
void rope_append_quantized_run(const RopeAppendParams& p, const RunContext& ctx) {
  if (!is_empty(p)) {
    AppendQuantizedArgs a = args_of(p);
    a.from[0] = source_of(p.k, true, p.k_norm_weight);
    a.from[1] = source_of(p.v, false, {});
    a.half = static_cast<int>(p.cos.dim(1));
    a.positions = p.positions.as<std::int32_t>();
    a.positions_stride = p.positions.stride(0);
    a.max_position = p.cos.dim(0);
    a.cos = p.cos.as<float>();
    a.sin = p.sin.as<float>();
    a.cos_stride = p.cos.stride(0);
    a.sin_stride = p.sin.stride(0);
    a.interleaved = p.interleaved;
    a.norm_eps = p.norm_eps;
    a.norm_weight_offset = p.norm_weight_offset;
    launch_append_quantized(a, p.k.dim(0), p.k_cache, ctx);
  }
  RopeParams q;
  q.x = p.q, q.positions = p.positions, q.cos = p.cos, q.sin = p.sin, q.norm_weight = p.q_norm_weight;
  q.out = p.q_out;
  q.norm_eps = p.norm_eps, q.norm_weight_offset = p.norm_weight_offset, q.interleaved = p.interleaved;
  rope_run(q, ctx);
}

}  // namespace kf::cuda
