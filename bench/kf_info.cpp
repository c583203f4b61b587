// kf_info: what this machine offers and every kernel that is compiled in.

#include <cstdio>
#include <exception>

#include <fmt/format.h>

#include "kf/kf.h"

namespace {

void print_info() {
  for (const kf::PluginReport& p : kf::plugin_reports())
    if (!p.error.empty()) fmt::print("plug-in not loaded: {}\n", p.error);
  for (const kf::Backend* b : kf::all_backends()) {
    if (const kf::Support s = b->available(); !s) {
      fmt::print("{}: not available: {}\n", b->name, s.reason());
      continue;
    }
    kf::Dispatcher d(*b);
    const kf::DeviceCaps& c = d.caps();
    fmt::print("{}: {}, {}, {} threads, L2 {} KiB, L3 {} MiB, memory {} GiB\n", b->name, c.name, c.isa,
               d.num_threads(), c.l2_bytes >> 10, c.l3_bytes >> 20, c.memory_bytes >> 30);
    for (const kf::OpInfo& op : kf::all_ops()) {
      fmt::print("\n{}: {}\n", op.name, op.summary);
      for (const kf::Kernel* k : d.kernels(op.op))
        fmt::print("  {:<36} {:<16} {}\n", k->name, kf::family_names(k->families), k->condition);
    }
  }
}

}  // namespace

int main() {
  try {
    print_info();
  } catch (const std::exception& e) {
    fmt::print(stderr, "kf_info: {}\n", e.what());
    return 1;
  }
  return 0;
}
