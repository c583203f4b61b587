// References for backends that have none of their own: the CPU's, on copies of a call's operands.
#pragma once

#include <string>
#include <vector>

#include "kf/kernel.h"

namespace kf {

// A row of family reference for each op that the CPU has a reference for, named `<backend>::<op>_reference`. One copies the
// operands to the host, runs the CPU's reference and copies what was written back; it waits for the device, and is there to be
// compared with.
std::vector<Kernel> host_reference_kernels(const std::string& backend);

}  // namespace kf
