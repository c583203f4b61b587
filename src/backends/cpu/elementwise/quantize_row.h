// A row in 8 bits.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

// Writes n codes, out = x / scale (quantized_output.h), and returns the scale: `static_scale`, or with 0 the row's own.
float quantize_row(DType dtype, const void* x, DType codes, void* out, std::int64_t n, float static_scale);

}  // namespace kf::cpu
