// The rows of the attention family, for the table in kernels.cpp.
#pragma once

#include "kf/kernel.h"

namespace kf::cpu {

// flash.cpp: fused, an online softmax over blocks of keys
Kernel attention_flash();

// unfused.cpp: the primitives as an eager framework runs them
Kernel attention_scores_onednn();
Kernel attention_mask_pass();
Kernel attention_values_onednn();

// ../reference/attention.cpp
Kernel attention_reference();
Kernel attention_scores_reference();
Kernel attention_mask_reference();
Kernel attention_values_reference();

}  // namespace kf::cpu
