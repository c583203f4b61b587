#pragma once

#include <vector>

#include "kf/backend.h"

namespace kf::cpu {

const Backend& backend();
DeviceCaps capabilities(int index);
std::vector<Kernel> kernels();  // kernels.cpp

}  // namespace kf::cpu
