// The backend of AMD's and Hygon's GPUs. Compiled with hipcc (CMake: KF_HIP), and loaded without HIP too: available() says what
// is missing.
#pragma once

#include "kf/backend.h"

namespace kf::hip {

const Backend& backend();

}  // namespace kf::hip
