// A kernel written in Python as a row of the table.
#pragma once

#include <string>

#include "bindings.h"
#include "kf/cuda_source.h"
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
// The row is a checked_kernel().
std::vector<Kernel> python_kernel_rows(const PythonKernel& kernel);

// CUDA source as a row, and one for its reference where that is given. `shape` is asked for a launch with the operands as
// layouts: (fields) -> (grid, block, shared_bytes).
std::vector<Kernel> cuda_kernel_rows(const std::string& name, Op op, const std::string& condition,
                                     CudaSource source, const nb::object& shape, const nb::object& supports,
                                     const nb::object& reference);

}  // namespace kf::python
