// The rows of the linear family for few tokens, for the table in kernels.cpp.
#pragma once

#include "kf/kernel.h"

namespace kf::cpu {

Kernel linear_small();
Kernel linear_small_unfused();
Kernel qkv_linear_small();
Kernel gated_ffn_small();
Kernel lm_head_argmax_small();

}  // namespace kf::cpu
