// Sparse weights, made of dense ones, and back.
#pragma once

#include "kf/ops/quantization.h"
#include "kf/ops/sparsity.h"

namespace kf {

// A sparse weight and its memory.
struct SparseWeight {
  Tensor values, mask, offsets;  // offsets of unstructured weights only
  std::int64_t n = 0, m = 0;

  Sparsity sparsity() const { return {mask, offsets, n, m}; }
};

// All that follow take tensors on the host, rows of `dense` [out, in] contiguous; in is a multiple of m. `dense` is f32,
// f16 or bf16, and of pack_values() and densify() also int4, i8 or fp8.

// Keeps the n largest of every m neighbours of a row by magnitude (a NaN before all else; among equals the first).
SparseWeight sparsify(const TensorView& dense, std::int64_t n, std::int64_t m);
// Keeps every element that is not 0, or with `sparsity` > 0 the largest: that share of all elements, rounded down, is
// dropped, among equals the last.
SparseWeight sparsify_unstructured(const TensorView& dense, double sparsity = 0.0);

// The steps of these, for callers with memory of their own: fill the mask [out, ceil(in / 8)] and return how many values
// it keeps; then gather these from `dense`, and fill the offsets of an unstructured weight.
std::int64_t choose_n_of_m(const TensorView& dense, std::int64_t n, std::int64_t m, const TensorView& mask);
std::int64_t choose_largest(const TensorView& dense, double sparsity, const TensorView& mask);
void pack_values(const TensorView& dense, const TensorView& values, const Sparsity& s);

// dense = the values where the mask has them, 0 elsewhere; `dense` is f32, f16 or bf16. `q` as for a weight [out, in].
void densify(const TensorView& values, const Quantization& q, const Sparsity& s, const TensorView& dense);

// Throws invalid_argument, naming the row, unless shapes fit a weight of `in` columns, every group of m has n values (n:m)
// or every row as many as its offsets say (unstructured), and no bit is set behind the last column.
void check_sparse(const TensorView& values, const Sparsity& s, std::int64_t in);

}  // namespace kf
