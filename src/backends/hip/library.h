// HIP, opened at run time.
#pragma once

#include "core/shared_library.h"

namespace kf::hip {

// problem() says why there is none.
const SharedLibrary& library();

}  // namespace kf::hip
