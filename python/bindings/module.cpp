#include "bindings.h"

NB_MODULE(_kf, m) {
  using namespace kf::python;
  m.doc() = "The C++ library kf: ops, kernels, fusion and the model engine.";
  m.attr("__version__") = KF_VERSION;
  // A manager's rows hold Python functions that may refer to the manager: such a cycle goes with the process.
  nb::set_leak_warnings(false);
  bind_errors(m);
  bind_arrays(m);
  bind_ops(m);
  bind_info(m);
  bind_hosted_backend(m);
  bind_fusion(m);
  bind_manager(m);
  bind_cases(m);
  bind_engine(m);
}
