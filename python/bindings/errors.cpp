// kf::Error as the Python exception of its code (sagellm_kernel_fusion/errors.py).
#include "bindings.h"
#include "kf/error.h"

namespace kf::python {

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      nb::object make = nb::module_::import_("sagellm_kernel_fusion.errors").attr("make_error");
      nb::object error = make(error_code_name(e.code()), e.what(), e.context());
      PyErr_SetObject(error.type().ptr(), error.ptr());
    }
  });
}

}  // namespace kf::python
