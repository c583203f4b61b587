// A call's keyword arguments as the Params struct of its op, and its outputs as arrays of the caller's kind.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bindings.h"

namespace kf::python {

// The op of this name. Throws invalid_argument, naming those there are.
const OpInfo& op_named(const std::string& name);

// How a caller's arrays lie where that is not as the op takes them.
struct Given {
  // Matrices that are given as x @ W has them: the op takes their transposed view.
  nb::handle transposed = nb::handle();
  // `x` [..., n] is a matrix of rows to the op, and so is `out`: what is made has the leading dimensions again.
  bool rows = false;
};

// Params filled from keyword arguments, with every wanted output's layout inferred. None is an absent operand or an
// attribute left at its default; True for an output is one to be made.
class BoundCall {
 public:
  BoundCall(const OpInfo& info, const nb::dict& fields, const Given& given = {});

  Op op() const { return info_.op; }
  const void* params() const { return params_.data(); }
  // Makes the outputs that were not given, with the caller's library where it can, else by arrays.allocate(dtype, shape,
  // like).
  void make_outputs();
  // The queue that the caller's library works on now, on the device of its first array; null: the device's default one.
  void* queue() const;
  // Once the op has run: its output, a tuple of several, or None where there is none.
  nb::object results();

 private:
  struct Output {
    const char* name;
    TensorView* view;
    nb::object object;  // none: to be made
    bool wanted;
  };
  class Binder;

  nb::object make(Output& o);
  TensorView as_rows(nb::handle array, const TensorView& t, bool written);

  const OpInfo& info_;
  // The Params struct, where it takes no allocation: structs are trivially copyable.
  alignas(std::max_align_t) std::array<std::byte, kMaxParamsBytes> params_;
  std::vector<Array> holders_;
  std::vector<Output> outputs_;
  bool rows_;
  std::optional<std::vector<std::int64_t>> leading_;  // of x, where it is given as rows
  nb::object first_array_;                            // whose kind the outputs shall be
  Device device_;                                     // of that array
};

}  // namespace kf::python
