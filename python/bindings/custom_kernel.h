// A kernel written in Python as a row of the table.
#pragma once

#include <string>

#include "bindings.h"
#include "kf/kernel.h"

namespace kf::python {

struct PythonKernel {
  std::string name, condition;
  Op op{};
  unsigned families = kCustom;
  DeviceType device_type = DeviceType::cpu;
  bool graph_safe = false;
  int launches = 1;
  bool check_sizes =
      true;              // each layout is checked; false: each form, that is, layouts apart from their sizes
  nb::object supports;   // (fields) -> why not, or None: operands are layouts without memory
  nb::object run;        // (fields, stream) -> None: operands are TypedArrays that live as long as the call
  nb::object reference;  // as run; None: the op's own reference
};

// The row, and where a reference is given a second one for it, which serves no calls but those of the check.
//
// Before a layout (or form) is served for the first time, the kernel is run on generated data and compared with the
// reference (for a large call, with the unfused composition, which the library's tests compare with it; on a device, with the
// backend's own kernel): what differs, or writes outside its outputs, is an invalid_argument of the call that was to use it,
// which has written nothing by then.
std::vector<Kernel> python_kernel_rows(const PythonKernel& kernel);

}  // namespace kf::python
