// The backend of NVIDIA GPUs. Compiled with the CUDA toolkit (CMake: KF_CUDA), and loaded without a GPU or a driver too:
// available() says what is missing.
#pragma once

#include <vector>

#include "kf/backend.h"

namespace kf::cuda {

const Backend& backend();
std::vector<Kernel> kernels();  // kernels.cpp

}  // namespace kf::cuda
