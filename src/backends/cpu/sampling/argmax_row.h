// The largest element of a row.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

struct Largest {
  float value;
  std::int32_t index;
};

// The lowest index among equals (zeros of either sign are equal); NaN counts as largest. n >= 1.
Largest argmax_row(DType dtype, const void* x, std::int64_t n);

}  // namespace kf::cpu
