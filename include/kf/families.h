// Families of kernels that come from outside the library's backends, as bits beside those of kf/kernel.h: a call takes
// them only where a configuration names them (attention_backend, backend, use_triton).
#pragma once

namespace kf {

inline constexpr unsigned kFlash3 = 32;    // FlashAttention-3
inline constexpr unsigned kXformers = 64;  // xFormers
inline constexpr unsigned kTriton = 128;   // written in Triton
inline constexpr unsigned kLastFamily = kTriton;

}  // namespace kf
