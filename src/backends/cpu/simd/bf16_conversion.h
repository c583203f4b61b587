// The processor's own conversion of f32 to bf16.
#pragma once

namespace kf::cpu {

// Whether there is one (AVX512-BF16).
bool has_bf16_conversion();

}  // namespace kf::cpu
