// The rows of a softmax.
#pragma once

#include <cstdint>

#include "backends/cpu/rows.h"
#include "kf/tensor.h"

namespace kf::cpu {

struct SoftmaxRows {
  TensorView x, out, lse;  // `lse` optional; `out` may be `x`
  RowOffsets x_rows, out_rows, lse_rows;
  std::int64_t n = 0;
  float scale = 1;
  bool stream = false;      // `out` is written past the caches
  bool fetch_next = false;  // while a row is read, the next is fetched
};

// Rows [begin, end) of out = softmax(scale x). `exponentials` has room for n.
void softmax_rows(const SoftmaxRows& rows, std::int64_t begin, std::int64_t end, float* exponentials);

// The mask of a row: n elements (boolean or an activation dtype), or with `step` 0 one for all.
struct MaskRow {
  DType dtype{};
  const void* data = nullptr;
  std::int64_t step = 1;
};
// One row of out = softmax(scale x + mask), -inf where a boolean mask is False; returns its lse. `exponentials` has room for n;
// `out` may be `x`.
float masked_softmax_row(DType dtype, const void* x, const MaskRow& mask, void* out, std::int64_t n,
                         float scale, float* exponentials, bool stream);

}  // namespace kf::cpu
