// One row of a softmax.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

// Writes out = softmax(scale x) and returns lse. `exponentials` has room for n; `out` may be `x`; with
// `stream`, `out` is written past the caches. `next` is the row that comes after this one, or x: it is fetched
// meanwhile.
float softmax_row(DType dtype, const void* x, const void* next, void* out, std::int64_t n, float scale,
                  float* exponentials, bool stream);

// The mask of a row: n elements (boolean or an activation dtype), or with `step` 0 one for all.
struct MaskRow {
  DType dtype{};
  const void* data = nullptr;
  std::int64_t step = 1;
};
// out = softmax(scale x + mask), -inf where a boolean mask is False; otherwise the same.
float masked_softmax_row(DType dtype, const void* x, const MaskRow& mask, void* out, std::int64_t n,
                         float scale, float* exponentials, bool stream);

}  // namespace kf::cpu
