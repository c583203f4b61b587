// Weights, and keys and values, with scales beside them, scalar. What kernels do in registers is measured against this.
#pragma once

#include <cstdint>

#include "kf/ops/quantization.h"

namespace kf {

// Throws invalid_argument unless the group fits its weight: present where the dtype needs it and absent elsewhere, of the
// shapes and dtypes that Quantization says. `weight` has rank 2; `name` is the operand's.
void check_quantization(const char* op, const char* name, const TensorView& weight, const Quantization& q);

// Elements of a weight that share a scale.
struct ScaleGrid {
  std::int64_t rows = 1, columns = 1;
};
ScaleGrid scale_grid(const TensorView& weight, const Quantization& q);

// The scale of a row in a group of its columns, and the zero there.
float scale_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group);
float zero_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group);

// An element, and a row, of such a weight in f32. Differences of integers are exact, so that each value is rounded once.
float dequantize_element(const TensorView& weight, const Quantization& q, std::int64_t row, std::int64_t k);
void dequantize_row(const TensorView& weight, const Quantization& q, std::int64_t row, float* values);

// The element at an element offset, of any plain dtype and of int4.
float read_element(const TensorView& t, std::int64_t offset);

// ---- Keys and values

// Like check_quantization(), for keys, values or a cache of rank 3 or 4.
void check_kv_quantization(const char* op, const char* name, const TensorView& kv, const Quantization& q);

// Elements of a row that share a scale.
inline std::int64_t kv_group_size(const TensorView& kv, const Quantization& q) {
  return q.group_size != 0 ? q.group_size : kv.dim(-1);
}
// Scales or zeros of `kv` with its dimensions, groups in the place of head_dim: those of size 1 have stride 0.
TensorView kv_broadcast(const TensorView& scales, const TensorView& kv);

}  // namespace kf
