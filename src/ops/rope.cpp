#include "kf/ops/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <fmt/format.h>

#include "core/operands.h"
#include "core/quantized.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace kf::ops {
namespace {

void validate_heads(const char* op, const char* name, const TensorView& x) {
  check(op, name, x).rank(3).activation_dtype().last_dim_contiguous();
}

void validate_norm_weight(const char* op, const char* name, const TensorView& weight, std::int64_t head_dim) {
  if (weight.present())
    check(op, name, weight).rank(1).dim(0, head_dim, "head_dim").activation_dtype().last_dim_contiguous();
}

void validate_norm(const char* op, float eps, float weight_offset) {
  if (!(eps >= 0.0f) || std::isinf(eps)) fail_attr(op, "norm_eps", "a number >= 0", fmt::format("{}", eps));
  check_finite(op, "norm_weight_offset", weight_offset);
}

void validate_tables(const char* op, const TensorView& positions, const TensorView& cos,
                     const TensorView& sin, std::int64_t num_tokens, std::int64_t head_dim) {
  check(op, "positions", positions).rank(1).dim(0, num_tokens, "num_tokens").dtype(DType::i32);
  const Check c = check(op, "cos", cos).rank(2).dtype(DType::f32).last_dim_contiguous();
  if (2 * cos.dim(1) > head_dim)
    c.fail(fmt::format("at most head_dim / 2 = {} columns", head_dim / 2), shape_string(cos));
  check(op, "sin", sin).dtype(DType::f32).shape_like(cos, "cos").last_dim_contiguous();
}

void validate_cache(const char* op, const char* name, const TensorView& cache, const Quantization& q,
                    const TensorView& k, KvLayout layout) {
  const int head_axis = layout == KvLayout::hnd ? 1 : 2, row_axis = layout == KvLayout::hnd ? 2 : 1;
  const Check c = check(op, name, cache).rank(4).last_dim_contiguous().no_overlap_in_itself();
  if (!is_activation_dtype(cache.dtype) && !needs_scales(cache.dtype))
    c.fail("f32, f16 or bf16; int4, i8, fp8_e4m3 or fp8_e5m2 with scales", dtype_name(cache.dtype));
  c.dim(head_axis, k.dim(1), "num_kv_heads").dim(3, k.dim(2), "head_dim");
  check_kv_quantization(op, name, cache, q);
  if (!needs_scales(cache.dtype)) return;
  // Each slot has its own, or one serves all.
  const std::string scales = std::string(name) + "_scales", zeros = std::string(name) + "_zeros";
  const bool own = q.scales.dim(0) == cache.dim(0) && q.scales.dim(row_axis) == cache.dim(row_axis);
  if (!own && (q.scales.dim(0) != 1 || q.scales.dim(row_axis) != 1))
    check(op, scales.c_str(), q.scales)
        .fail(fmt::format("{} and {} in dimensions 0 and {} (a scale a token), or 1 and 1 (given scales)",
                          cache.dim(0), cache.dim(row_axis), row_axis),
              shape_string(q.scales));
  if (!own) return;
  check(op, scales.c_str(), q.scales).no_overlap_in_itself();
  if (q.zeros.present()) check(op, zeros.c_str(), q.zeros).no_overlap_in_itself();
}

// AppendKvParams and RopeAppendParams name these operands alike.
template <class P>
void validate_append(const char* op, const P& p) {
  validate_heads(op, "k", p.k);
  validate_heads(op, "v", p.v);
  check(op, "v", p.v).shape_like(p.k, "k").dtype_like(p.k, "k");
  const Check slots = check(op, "slot_mapping", p.slot_mapping).rank(1).dim(0, p.k.dim(0), "num_tokens");
  if (p.slot_mapping.dtype != DType::i32 && p.slot_mapping.dtype != DType::i64)
    slots.fail("i32 or i64", dtype_name(p.slot_mapping.dtype));
  validate_cache(op, "k_cache", p.k_cache, p.k_cache_quantization, p.k, p.kv_layout);
  validate_cache(op, "v_cache", p.v_cache, p.v_cache_quantization, p.k, p.kv_layout);
  check(op, "v_cache", p.v_cache).shape_like(p.k_cache, "k_cache").dtype_like(p.k_cache, "k_cache");
}

// Two tokens of one slot would be written in any order, by several threads.
template <class T>
void validate_distinct(const char* op, const TensorView& slots) {
  const auto slot = [&](std::int64_t i) { return slots.as<T>()[i * slots.stride(0)]; };
  const std::int64_t n = slots.dim(0);
  // The tokens of one sequence mostly ascend, and then nothing need be sorted.
  std::int64_t i = 1;
  while (i < n && slot(i - 1) < slot(i)) ++i;
  if (i >= n) return;
  thread_local std::vector<T> sorted;
  sorted.clear();
  for (i = 0; i < n; ++i)
    if (slot(i) >= 0) sorted.push_back(slot(i));
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    check(op, "slot_mapping", slots)
        .fail("a slot of its own for every token", fmt::format("slot {} twice", *twice));
}

template <class P>
void validate_slots(const char* op, const P& p) {
  const std::int64_t page_size = p.k_cache.dim(p.kv_layout == KvLayout::hnd ? 2 : 1);
  check_values(op, "slot_mapping", p.slot_mapping, std::numeric_limits<std::int64_t>::min(),
               p.k_cache.dim(0) * page_size, "num_pages * page_size; negative slots are skipped");
  if (!on_host(p.slot_mapping)) return;
  if (p.slot_mapping.dtype == DType::i64)
    validate_distinct<std::int64_t>(op, p.slot_mapping);
  else
    validate_distinct<std::int32_t>(op, p.slot_mapping);
}

void validate_positions(const char* op, const TensorView& positions, const TensorView& cos) {
  check_values(op, "positions", positions, 0, cos.dim(0), "rows of the cos and sin tables");
}

// cos and sin rows of every token.
double table_bytes(const TensorView& positions, const TensorView& cos) {
  return static_cast<double>(positions.nbytes()) + 8.0 * static_cast<double>(positions.numel() * cos.dim(1));
}

// Bytes that k and v take in the caches.
template <class P>
double cache_bytes(const P& p) {
  const auto row_bytes = [](const TensorView& t) {
    const DTypeInfo& info = dtype_info(t.dtype);
    return t.present() ? static_cast<double>(t.dim(-1)) * info.block_bytes / info.block_elems : 0.0;
  };
  double bytes = 2 * row_bytes(p.k_cache);
  for (const Quantization* q : {&p.k_cache_quantization, &p.v_cache_quantization})
    bytes += row_bytes(q->scales) + row_bytes(q->zeros);
  return static_cast<double>(p.k.dim(0) * p.k.dim(1)) * bytes;
}

double rope_flops(const TensorView& x, const TensorView& norm_weight) {
  return static_cast<double>(x.numel()) * (norm_weight.present() ? 7 : 3);
}

}  // namespace

void infer(RopeParams& p) {
  if (p.x.present() && !p.out.present()) p.out = contiguous_like(p.x, p.x.dtype);
}
void validate(const RopeParams& p) {
  validate_heads("rope", "x", p.x);
  validate_tables("rope", p.positions, p.cos, p.sin, p.x.dim(0), p.x.dim(2));
  validate_norm_weight("rope", "norm_weight", p.norm_weight, p.x.dim(2));
  validate_norm("rope", p.norm_eps, p.norm_weight_offset);
  check("rope", "out", p.out)
      .shape_like(p.x, "x")
      .dtype_like(p.x, "x")
      .last_dim_contiguous()
      .no_overlap_in_itself();
}
void validate_data(const RopeParams& p) { validate_positions("rope", p.positions, p.cos); }
Cost cost(const RopeParams& p) {
  return {rope_flops(p.x, p.norm_weight),
          static_cast<double>(p.x.nbytes() + p.out.nbytes()) + table_bytes(p.positions, p.cos)};
}

void infer(AppendKvParams&) {}
void validate(const AppendKvParams& p) { validate_append("append_kv", p); }
void validate_data(const AppendKvParams& p) { validate_slots("append_kv", p); }
Cost cost(const AppendKvParams& p) {
  return {0, static_cast<double>(p.k.nbytes() + p.v.nbytes() + p.slot_mapping.nbytes()) + cache_bytes(p)};
}

void infer(RopeAppendParams& p) {
  if (p.q.present() && !p.q_out.present()) p.q_out = contiguous_like(p.q, p.q.dtype);
}
void validate(const RopeAppendParams& p) {
  validate_heads("rope_append", "q", p.q);
  validate_append("rope_append", p);
  check("rope_append", "k", p.k)
      .dim(0, p.q.dim(0), "num_tokens of q")
      .dim(2, p.q.dim(2), "head_dim of q")
      .dtype_like(p.q, "q");
  validate_tables("rope_append", p.positions, p.cos, p.sin, p.q.dim(0), p.q.dim(2));
  validate_norm_weight("rope_append", "q_norm_weight", p.q_norm_weight, p.q.dim(2));
  validate_norm_weight("rope_append", "k_norm_weight", p.k_norm_weight, p.q.dim(2));
  validate_norm("rope_append", p.norm_eps, p.norm_weight_offset);
  check("rope_append", "q_out", p.q_out)
      .shape_like(p.q, "q")
      .dtype_like(p.q, "q")
      .last_dim_contiguous()
      .no_overlap_in_itself();
}
void validate_data(const RopeAppendParams& p) {
  validate_positions("rope_append", p.positions, p.cos);
  validate_slots("rope_append", p);
}
Cost cost(const RopeAppendParams& p) {
  const std::size_t operands =
      p.q.nbytes() + p.k.nbytes() + p.v.nbytes() + p.slot_mapping.nbytes() + p.q_out.nbytes();
  return {rope_flops(p.q, p.q_norm_weight) + rope_flops(p.k, p.k_norm_weight),
          static_cast<double>(operands) + table_bytes(p.positions, p.cos) + cache_bytes(p)};
}

}  // namespace kf::ops

namespace kf {
namespace {

// Llama 3: low frequencies are divided by `factor`, high ones kept, those between blended linearly in the
// number of turns that a frequency makes over the original context.
double scaled_frequency(double frequency, const RopeScaling& s) {
  if (s.factor == 1.0f) return frequency;
  const double turns = static_cast<double>(s.original_max_position) * frequency / (2 * std::numbers::pi);
  if (turns < s.low_freq_factor) return frequency / s.factor;
  if (turns > s.high_freq_factor) return frequency;
  const double keep =
      (turns - s.low_freq_factor) / (static_cast<double>(s.high_freq_factor) - s.low_freq_factor);
  return (1 - keep) * frequency / s.factor + keep * frequency;
}

void validate_rope_tables(std::int64_t max_position, int rotary_dim, double theta, const RopeScaling& scaling,
                          const TensorView& freq_factors) {
  constexpr const char* kOp = "make_rope_tables";
  if (max_position < 0) ops::fail_attr(kOp, "max_position", "0 or more", fmt::format("{}", max_position));
  if (rotary_dim <= 0 || rotary_dim % 2 != 0)
    ops::fail_attr(kOp, "rotary_dim", "a positive even number", fmt::format("{}", rotary_dim));
  if (!(theta > 0) || std::isinf(theta))
    ops::fail_attr(kOp, "theta", "a number > 0", fmt::format("{}", theta));
  if (!(scaling.factor > 0)) ops::fail_attr(kOp, "factor", "a number > 0", fmt::format("{}", scaling.factor));
  if (scaling.factor != 1.0f && !(scaling.high_freq_factor > scaling.low_freq_factor))
    ops::fail_attr(kOp, "high_freq_factor",
                   fmt::format("more than low_freq_factor ({})", scaling.low_freq_factor),
                   fmt::format("{}", scaling.high_freq_factor));
  if (freq_factors.present()) {
    const ops::Check c = ops::check(kOp, "freq_factors", freq_factors);
    c.rank(1).dtype(DType::f32).dim(0, rotary_dim / 2, "rotary_dim / 2");
    check_memory(kOp, "freq_factors", freq_factors);
    for (std::int64_t i = 0; i < freq_factors.dim(0); ++i) {
      const float f = freq_factors.as<float>()[i * freq_factors.stride(0)];
      if (!(f > 0)) c.fail("positive factors", fmt::format("{} at index {}", f, i));
    }
  }
}

}  // namespace

RopeTables make_rope_tables(std::int64_t max_position, int rotary_dim, double theta,
                            const RopeScaling& scaling, const TensorView& freq_factors) {
  validate_rope_tables(max_position, rotary_dim, theta, scaling, freq_factors);
  const int half = rotary_dim / 2;
  RopeTables tables{Tensor(DType::f32, {max_position, half}), Tensor(DType::f32, {max_position, half})};
  for (int i = 0; i < half; ++i) {
    double frequency = scaled_frequency(std::pow(theta, -2.0 * i / rotary_dim), scaling);
    if (freq_factors.present()) frequency /= freq_factors.as<float>()[i * freq_factors.stride(0)];
    for (std::int64_t position = 0; position < max_position; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      tables.cos.as<float>()[position * half + i] = static_cast<float>(std::cos(angle));
      tables.sin.as<float>()[position * half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return tables;
}

}  // namespace kf
