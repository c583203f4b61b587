// Quantized keys and values to f32.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

// out = (codes - zero) * scale, for codes of int4, i8 or fp8 that share a scale; n is even for int4.
void decode_codes(DType dtype, const void* codes, float scale, float zero, std::int64_t n, float* out);

}  // namespace kf::cpu
