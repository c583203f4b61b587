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

}  // namespace kf::cpu
