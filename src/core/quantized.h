// Weights with scales beside them, scalar. What kernels do in registers is measured against this.
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

}  // namespace kf
