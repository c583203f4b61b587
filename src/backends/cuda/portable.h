// The rows whose kernels ask for nothing of NVIDIA's alone.
#pragma once

#include <string>
#include <vector>

#include "kf/kernel.h"

namespace kf::cuda {

// Under the names of a backend.
std::vector<Kernel> portable_kernels(const std::string& backend);

}  // namespace kf::cuda
