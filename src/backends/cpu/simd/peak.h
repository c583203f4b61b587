// The arithmetic that the processor is capable of: what a GEMM is measured against.
#pragma once

#include <cstdint>

namespace kf::cpu {

// `steps` rounds of independent f32 multiply-adds in registers, on the calling thread, with the instruction set in use.
// Returns the floating-point operations done; `sink` receives their result, so that they are needed.
double multiply_adds(std::int64_t steps, float* sink);

}  // namespace kf::cpu
