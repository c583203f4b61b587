// What all rows refuse alike.
#pragma once

#include "kf/kernel.h"

namespace kf::cuda {

// The row, refusing calls with operands that its kernels do not know, and data of other dtypes than f32, f16 and bf16;
// writes_codes: of a row that writes 8-bit or 4-bit codes.
Kernel guarded(Kernel k, bool writes_codes);

}  // namespace kf::cuda
