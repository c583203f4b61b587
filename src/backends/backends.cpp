// The one list of what is compiled in.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/cpu/cpu_backend.h"
#ifdef KF_CUDA
#include "backends/cuda/cuda_backend.h"
#endif
#include "kf/backend.h"
#include "kf/error.h"

namespace kf {

std::span<const Backend* const> all_backends() {
  static const Backend* const kBackends[] = {
      &cpu::backend(),
#ifdef KF_CUDA
      &cuda::backend(),
#endif
  };
  return kBackends;
}

const Backend& backend_by_name(const std::string& name) {
  std::vector<std::string> names;
  for (const Backend* b : all_backends()) {
    if (b->name == name) return *b;
    names.push_back(b->name);
  }
  throw Error(ErrorCode::unavailable,
              fmt::format("backend: expected one of those compiled in ({}), got {}", fmt::join(names, ", "), name));
}

}  // namespace kf
