// Sparse weights, scalar. What kernels expand in registers is measured against this.
#pragma once

#include <cstdint>
#include <cstring>

#include "kf/ops/quantization.h"
#include "kf/ops/sparsity.h"

namespace kf {

// Throws invalid_argument unless `values` and what lies beside them have the shapes and dtypes that Sparsity says for a
// weight of `in` columns. `name` is the operand's.
void check_sparsity(const char* op, const char* name, const TensorView& values, const Sparsity& s,
                    std::int64_t in);

// Throws unless an unstructured weight's offsets, which are read, ascend from 0 to the number of its values.
void check_offsets(const char* op, const char* name, const TensorView& values, const Sparsity& s);

// Rows of a weight, of a sparse one too.
inline std::int64_t weight_rows(const TensorView& weight, const Sparsity& s) {
  return s.present() ? s.mask.dim(0) : weight.dim(0);
}

// A weight as [out, in], whatever is stored of it: what kernels go by. Of a sparse one the address is that of the values
// and the stride of rows that of their rows, 0 where these have offsets instead.
inline TensorView dense_layout(const TensorView& weight, const Sparsity& s, std::int64_t in) {
  if (!s.present()) return weight;
  TensorView t = TensorView::contiguous(weight.data, weight.dtype, {s.mask.dim(0), in}, weight.device);
  t.strides[0] = weight.rank == 2 ? weight.stride(0) : 0;
  return t;
}

// A weight [out, in] with all that it is read with.
struct Weight {
  TensorView layout;
  Quantization quantization;
  Sparsity sparsity;

  Weight(const TensorView& weight, const Quantization& quantization, const Sparsity& sparsity,
         std::int64_t in)
      : layout(dense_layout(weight, sparsity, in)), quantization(quantization), sparsity(sparsity) {}
};

// Values before those of a row, counted from the operand's first element, and those of all rows.
inline std::int64_t first_value(const TensorView& layout, const Sparsity& s, std::int64_t row) {
  return s.m == 0 ? s.offsets.as<const std::int64_t>()[row * s.offsets.stride(0)] : row * layout.stride(0);
}
inline std::int64_t end_of_values(const TensorView& layout, const Sparsity& s) {
  const std::int64_t rows = layout.dim(0);
  if (s.m == 0 || rows == 0) return s.m == 0 ? first_value(layout, s, rows) : 0;
  return first_value(layout, s, rows - 1) + layout.dim(1) / s.m * s.n;
}

// 32 bits of a row's mask, from column `k` (a multiple of 8) on; what lies behind its last byte is 0.
inline std::uint32_t mask_bits(const std::uint8_t* row, std::int64_t bytes, std::int64_t k) {
  std::uint32_t bits = 0;
  const std::int64_t left = bytes - k / 8;
  if (left >= 4) {
    std::memcpy(&bits, row + k / 8, 4);
  } else if (left > 0) {
    std::memcpy(&bits, row + k / 8, static_cast<std::size_t>(left));
  }
  return bits;
}

// Values of a row before column `k`, a multiple of 32, which m divides.
std::int64_t values_before(const TensorView& layout, const Sparsity& s, std::int64_t row, std::int64_t k);

// A row in f32.
void expand_row(const TensorView& layout, const Quantization& q, const Sparsity& s, std::int64_t row,
                float* to);

}  // namespace kf
