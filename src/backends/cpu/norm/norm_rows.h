// The rows of a norm, for both kinds.
#pragma once

#include <cstdint>

#include "backends/cpu/rows.h"
#include "kf/tensor.h"

namespace kf::cpu {

struct NormRows {
  TensorView x, residual, out, residual_out;  // `out` is of x's dtype or f32
  RowOffsets x_rows, residual_rows, out_rows, residual_out_rows;
  DType weight_dtype{};  // of x, or f32
  const void* weight = nullptr;
  const void* bias = nullptr;  // layer norm only, optional
  std::int64_t n = 0;
  float eps = 0;
  bool centred = false;  // layer norm: the mean is taken off first
  bool stream = false;   // `out` is written past the caches
  std::int64_t num_rows = 0;
  bool fetch_next = false;  // while a row is written, the next is fetched
};

void norm_rows(const NormRows& rows, std::int64_t begin, std::int64_t end);

}  // namespace kf::cpu
