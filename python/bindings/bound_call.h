// A call's keyword arguments as the Params struct of its op, and its outputs as arrays of the caller's kind.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bindings.h"

namespace kf::python {

// The op of this name. Throws invalid_argument, naming those there are.
const OpInfo& op_named(const std::string& name);

// Params filled from keyword arguments, with every wanted output's layout inferred. None is an absent operand or an
// attribute left at its default; True for an output is one to be made. `transposed` names matrices that are given as
// x @ W has them and that the op takes as their transposed view.
class BoundCall {
 public:
  BoundCall(const OpInfo& info, const nb::dict& fields, const nb::handle& transposed = nb::handle());

  Op op() const { return info_.op; }
  const void* params() const { return params_.data(); }
  // Makes the outputs that were not given, with the caller's library where it can, else by arrays.allocate(dtype, shape,
  // like); calls `run` without the GIL. Returns the output, a tuple of several, or None where there is none.
  nb::object run(const std::function<void(Op, const void*)>& run);

 private:
  struct Output {
    const char* name;
    TensorView* view;
    nb::object object;  // none: to be made
    bool wanted;
  };
  class Binder;

  nb::object make(Output& o);

  const OpInfo& info_;
  AnyParams params_;
  std::vector<Array> holders_;
  std::vector<Output> outputs_;
  nb::object first_array_;  // whose kind the outputs shall be
};

}  // namespace kf::python
