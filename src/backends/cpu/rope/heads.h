// The heads of one token: rows of head_dim elements, somewhere.
#pragma once

#include <cstdint>

#include "backends/cpu/simd/convert_row.h"
#include "kf/ops/common.h"

namespace kf::cpu {

struct Heads {
  void* data = nullptr;
  DType dtype{};
  std::int64_t stride = 0;  // elements from one to the next
};

// Of a tensor [num_tokens, num_heads, head_dim].
inline Heads heads_of(const TensorView& x, std::int64_t token) {
  return {x.at(token * x.stride(0)), x.dtype, x.stride(1)};
}

inline void copy_heads(const Heads& from, const Heads& to, std::int64_t num_heads, std::int64_t head_dim) {
  if (from.stride == head_dim && to.stride == head_dim)
    return convert_row(from.dtype, from.data, to.dtype, to.data, num_heads * head_dim);
  const std::int64_t from_bytes = from.stride * dtype_info(from.dtype).block_bytes;
  const std::int64_t to_bytes = to.stride * dtype_info(to.dtype).block_bytes;
  for (std::int64_t h = 0; h < num_heads; ++h)
    convert_row(from.dtype, static_cast<const char*>(from.data) + h * from_bytes, to.dtype,
                static_cast<char*>(to.data) + h * to_bytes, head_dim);
}

// Slots of new tokens, i32 or i64; negative ones are skipped.
inline std::int64_t slot_of(const TensorView& slot_mapping, std::int64_t token) {
  const std::int64_t at = token * slot_mapping.stride(0);
  return slot_mapping.dtype == DType::i64 ? slot_mapping.as<std::int64_t>()[at]
                                          : slot_mapping.as<std::int32_t>()[at];
}

// The heads of a slot of a cache [num_pages, num_kv_heads, page_size, head_dim] (HND) or
// [num_pages, page_size, num_kv_heads, head_dim] (NHD).
inline Heads heads_of_slot(const TensorView& cache, KvLayout layout, std::int64_t slot) {
  const int row_axis = layout == KvLayout::hnd ? 2 : 1, head_axis = layout == KvLayout::hnd ? 1 : 2;
  const std::int64_t page_size = cache.dim(row_axis);
  const std::int64_t offset = slot / page_size * cache.stride(0) + slot % page_size * cache.stride(row_axis);
  return {cache.at(offset), cache.dtype, cache.stride(head_axis)};
}

}  // namespace kf::cpu
