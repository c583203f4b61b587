// The unfused composition of every op that has a rule, as kernel rows: "cpu::gated_ffn_unfused", family
// vanilla.
#pragma once

#include <string>
#include <vector>

#include "kf/kernel.h"

namespace kf {

std::vector<Kernel> composition_kernels(const std::string& backend_name);

}  // namespace kf
