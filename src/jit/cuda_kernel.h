// A CUDA source as a row of the table, over given libraries.
#pragma once

#include <string>

#include "jit/driver.h"
#include "jit/nvrtc.h"
#include "kf/cuda_source.h"

namespace kf::jit {

// Both outlive the row. Code is kept in `folder`; empty: nowhere.
Kernel cuda_kernel(std::string name, Op op, CudaSource source, CheckOptions check, const Nvrtc& nvrtc,
                   const Driver& driver, std::string folder);

}  // namespace kf::jit
