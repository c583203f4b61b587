// Kernels that are not the library's own are checked before they serve.
#pragma once

#include <string>

#include "kf/kernel.h"

namespace kf {

struct CheckOptions {
  // The row to compare with; empty: the op's own reference (for a large call the unfused composition, which the library's
  // tests compare with it; on a device the backend's own kernel).
  std::string reference = {};
  bool sizes = true;  // each layout is checked; false: each form, that is, layouts apart from their sizes
};

// The row, which before a layout (or form) is served for the first time runs on generated data and is compared with the
// reference: what differs, or writes outside its outputs, is an invalid_argument of the call that was to use it, which has
// written nothing by then.
Kernel checked_kernel(Kernel kernel, CheckOptions options = {});

// Whether this thread is within such a check: a reference that serves no calls but it asks so.
bool checking_kernel();

}  // namespace kf
