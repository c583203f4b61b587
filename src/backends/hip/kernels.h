// The table of kernels for AMD's and Hygon's GPUs (device "rocm").
#pragma once

#include <vector>

#include "kf/kernel.h"

namespace kf::hip {

std::vector<Kernel> kernels();

}  // namespace kf::hip
