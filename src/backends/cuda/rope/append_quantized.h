// append_kv and rope_append into caches of int4, i8 or fp8.
#pragma once

#include <cstdint>

#include "backends/cuda/runtime.h"
#include "kf/kernel.h"
#include "kf/ops/rope.h"

namespace kf::cuda {

// Strides in elements; 0 where one serves all.
struct CachePlace {
  std::int64_t page_stride, row_stride, head_stride;
};

struct QuantizedCache {
  std::uint8_t* data;
  DType dtype;
  std::int64_t page_size, num_pages;
  CachePlace data_at, scales_at, zeros_at;
  void* scales;
  DType scales_dtype;
  std::int8_t* zeros;  // or null
  int group;
  bool computes_scales, heads_share;
};

struct HeadsSource {
  const void* x;
  std::int64_t token_stride, head_stride;
  bool rotate;
  const void* norm_weight;  // or null
  DType norm_weight_dtype;
};

struct AppendQuantizedArgs {
  HeadsSource from[2];  // k, v
  QuantizedCache to[2];
  DType dtype;  // of k and v
  int num_heads, head_dim, half;
  const std::int32_t* positions;
  std::int64_t positions_stride, max_position;
  const float *cos, *sin;
  std::int64_t cos_stride, sin_stride;
  const void* slots;
  std::int64_t slots_stride;
  bool slots_are_64_bit, interleaved;
  float norm_eps, norm_weight_offset;
  TableFault* fault;
};

void launch_append_quantized(const AppendQuantizedArgs& a, std::int64_t num_tokens, const TensorView& on,
                             const RunContext& ctx);

Support append_kv_quantized_supports(const AppendKvParams& p, const PlanContext& ctx);
void append_kv_quantized_run(const AppendKvParams& p, const RunContext& ctx);
Support rope_append_quantized_supports(const RopeAppendParams& p, const PlanContext& ctx);
void rope_append_quantized_run(const RopeAppendParams& p, const RunContext& ctx);

}  // namespace kf::cuda
