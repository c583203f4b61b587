// What the files of the extension share. Each binds one part of the C++ API; none adds logic of its own.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "kf/kf.h"

namespace nb = nanobind;

namespace kf::python {

// A caller's array as a view, with the reference that keeps its memory alive.
struct Array {
  TensorView view;
  nb::ndarray<nb::ro> holder;
};

enum class Access { read, write };

// Views `object`: anything that exports DLPack or a buffer, or a TypedArray. `what` names it in errors
// ("rms_norm: x"). Throws invalid_argument.
Array to_array(nb::handle object, const std::string& what, Access access = Access::read);

// As to_array, for the length of a call during which `object` stays alive: what can be lent is not held.
TensorView borrow_array(nb::handle object, const char* op, const char* operand, Access access,
                        std::vector<Array>& holders);

// A TypedArray over memory that somebody else keeps.
nb::object lend(const TensorView& view);

DType parse_dtype(const std::string& name);
Selection make_selection(const std::vector<std::string>& families, const std::string& kernel,
                         bool allow_fallback, bool batch_invariant = false, bool tf32 = false);
std::vector<std::int64_t> shape_of(const TensorView& t);
// Fields of KernelFusionConfig by name; those not given keep their defaults. Throws invalid_argument.
KernelFusionConfig fusion_config_from(const nb::dict& values);
// By op and kernel, and by layout.
nb::list count_rows(const CallLog& log);
nb::list distinct_rows(const CallLog& log);
nb::list explained_rows(const std::vector<Explained>& rows);

// f(x) of each x, in a list.
template <class Range, class F>
nb::list listed(const Range& range, const F& f) {
  nb::list all;
  for (const auto& x : range) all.append(f(x));
  return all;
}
// f() while other threads may run Python; it touches none.
template <class F>
auto unlocked(const F& f) {
  nb::gil_scoped_release release;
  return f();
}
// What a function of Python says of support: None, or the reason why not.
inline Support support_of(const nb::object& reason) {
  return reason.is_none() ? Support::yes() : Support::no(nb::cast<std::string>(nb::str(reason)));
}
// Name, op, families and condition.
nb::dict kernel_dict(const Kernel& k);

void bind_errors(nb::module_& m);
void bind_arrays(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_info(nb::module_& m);
void bind_hosted_backend(nb::module_& m);
void bind_fusion(nb::module_& m);
void bind_manager(nb::module_& m);
void bind_cases(nb::module_& m);
void bind_engine(nb::module_& m);

}  // namespace kf::python
