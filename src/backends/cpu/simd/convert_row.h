// A contiguous run of elements from one dtype to another.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

// `from` is any float dtype or block format (n a multiple of its block), `to` is f32, f16 or bf16. Equal
// dtypes are copied; others go through f32 and are rounded once.
void convert_row(DType from, const void* src, DType to, void* dst, std::int64_t n);

}  // namespace kf::cpu
