// The one list of what is compiled in.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/cpu/cpu_backend.h"
#include "kf/backend.h"
#include "kf/error.h"

namespace kf {

std::span<const Backend* const> all_backends() {
  static const Backend* const kBackends[] = {&cpu::backend()};
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
