#pragma once

#include <vector>

#include "kf/backend.h"

namespace kf::cpu {

// The instruction set of AVX-512 with matrix units for bf16, as DeviceCaps::isa.
inline constexpr const char* kMatrixIsa = "amx";

const Backend& backend();
DeviceCaps capabilities(int index);
std::vector<Kernel> kernels();  // kernels.cpp

}  // namespace kf::cpu
