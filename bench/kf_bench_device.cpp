// kf_bench_device: the benchmark sizes of accelerators on a device: the kernel that a default call takes, timed by the
// device's own clock beside a copy of as many bytes, and checked against the CPU in the same run. JSON on request. With
// --kernels: every kernel whose name matches and that serves the call, in turn.
//   kf_bench_device [--backend cuda] [--filter REGEX] [--kernels REGEX] [--json FILE]

#include <cstdio>
#include <fstream>
#include <regex>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/error.h"
#include "runner.h"

namespace {

struct Options {
  std::string backend = "cuda", filter, kernels, json;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    std::string* const value = name == "--backend"   ? &o.backend
                               : name == "--filter"  ? &o.filter
                               : name == "--kernels" ? &o.kernels
                               : name == "--json"    ? &o.json
                                                     : nullptr;
    if (value == nullptr || i + 1 >= argc)
      throw kf::Error(
          kf::ErrorCode::invalid_argument,
          fmt::format("expected --backend NAME, --filter REGEX, --kernels REGEX or --json FILE, got {}",
                      name));
    *value = argv[i + 1];
  }
  return o;
}

int run(const Options& o) {
  kf::Dispatcher device(kf::backend_by_name(o.backend));
  fmt::print("{}: {}\n{:<52} {:<32} {:>10} {:>9} {:>9} {:>9}\n", o.backend, device.caps().name, "case",
             "kernel", "us", "GB/s", "TFLOP/s", "of a copy");
  nlohmann::json results = nlohmann::json::array();
  const std::regex filter(o.filter);
  int wrong = 0;
  const auto selections = [&](kf::Op op) {
    if (o.kernels.empty()) return std::vector<kf::Selection>{{}};
    std::vector<kf::Selection> all;
    const std::regex wanted(o.kernels);
    for (const kf::Kernel* k : device.kernels(op))
      if (std::regex_search(k->name, wanted)) all.push_back({.families = k->families, .kernel = k->name});
    return all;
  };
  for (const kf::cases::Case& c : kf::cases::device_cases()) {
    if (!std::regex_search(c.name, filter)) continue;
    for (const kf::Selection& selection : selections(c.op)) {
      try {
        const auto t = kf::cases::time_on_device(c, device, selection);
        const double gb_per_s = t.cost.bytes / (t.ms * 1e6);
        fmt::print("{:<52} {:<32} {:>10.2f} {:>9.0f} {:>9.1f} {:>9.2f}{}\n", c.name, t.kernel, t.ms * 1e3,
                   gb_per_s, t.cost.flops / (t.ms * 1e9), t.copy_ms / t.ms,
                   t.check.ok ? "" : "  WRONG: " + t.check.detail);
        wrong += !t.check.ok;
        results.push_back({{"case", c.name},
                           {"kernel", t.kernel},
                           {"ms", t.ms},
                           {"copy_ms", t.copy_ms},
                           {"bytes", t.cost.bytes},
                           {"flops", t.cost.flops},
                           {"ok", t.check.ok},
                           {"relative_error", t.check.relative_error}});
      } catch (const kf::Error& e) {
        if (!o.kernels.empty() && e.code() == kf::ErrorCode::not_implemented) continue;  // it does not serve
        fmt::print("{:<52} {}\n", c.name, e.what());
      }
    }
    std::fflush(stdout);
  }
  if (!o.json.empty())
    std::ofstream(o.json) << nlohmann::json{{"device", device.caps().name}, {"results", results}}.dump(1)
                          << '\n';
  return wrong > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "kf_bench_device: {}\n", e.what());
    return 2;
  }
}
