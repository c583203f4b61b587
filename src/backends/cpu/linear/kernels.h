// The rows of the linear family for many tokens, for the table in kernels.cpp.
#pragma once

#include "kf/kernel.h"

namespace kf::cpu {

// gemm.cpp: our own GEMM
Kernel linear_fused();
Kernel linear_lowbit_unfused();
Kernel qkv_linear_fused();
Kernel gated_ffn_fused();
Kernel lm_head_argmax_fused();

// onednn.cpp: the library's
Kernel linear_onednn();

// ../reference/linear.cpp
Kernel linear_reference();
Kernel qkv_linear_reference();
Kernel gated_ffn_reference();
Kernel lm_head_argmax_reference();

}  // namespace kf::cpu
