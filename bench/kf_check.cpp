// kf_check [--plugin FILE] [--backend NAME] [--cases REGEX] [--every N]: the ops that a backend has rows of, on its device, over
// their cases (or every Nth of these) against the reference of the CPU. Exit status 1: a result is wrong, a call failed, or a row
// of the backend's own took no case.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <regex>
#include <set>
#include <string>

#include <fmt/format.h>

#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace {

using namespace kf;

struct Options {
  std::string plugin, backend = "cpu", cases, every = "1";
  long step() const { return std::strtol(every.c_str(), nullptr, 10); }
};

constexpr int kUsage = 2, kMaxShown = 5;

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i < argc; ++i) {
    std::string* value = !std::strcmp(argv[i], "--plugin")    ? &o.plugin
                         : !std::strcmp(argv[i], "--backend") ? &o.backend
                         : !std::strcmp(argv[i], "--cases")   ? &o.cases
                         : !std::strcmp(argv[i], "--every")   ? &o.every
                                                              : nullptr;
    if (value == nullptr || i + 1 == argc) return false;
    *value = argv[++i];
  }
  return o.step() > 0;
}

struct Row {
  int cases = 0, wrong = 0;
  double max_relative_error = 0;
};

int check(const Options& o) {
  const Backend& backend = o.plugin.empty() ? backend_by_name(o.backend) : load_plugin(o.plugin);
  Dispatcher d(backend);
  fmt::print("{}: {}, {}\n", backend.name, d.caps().name, d.caps().isa);
  const std::regex wanted(o.cases);
  std::map<std::string, Row> rows;
  std::set<Op> ops;
  for (const Kernel& k : backend.kernels()) ops.insert(k.op);
  int failed = 0;
  long matching = 0;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || !ops.contains(c.op) || !std::regex_search(c.name, wanted)) continue;
    if (matching++ % o.step() != 0) continue;
    try {
      for (const cases::KernelCheck& k : cases::check_case(c, d)) {
        if (!k.supported) continue;
        Row& row = rows[k.kernel.substr(0, k.kernel.find('+'))];  // "+packed": the same row
        ++row.cases;
        row.max_relative_error = std::max(row.max_relative_error, k.result.relative_error);
        if (k.result.ok) continue;
        if (row.wrong++ < kMaxShown) fmt::print("WRONG {} on {}: {}\n", c.name, k.kernel, k.result.detail);
      }
    } catch (const Error& e) {
      if (failed++ < kMaxShown) fmt::print("FAILED {}: {}\n", c.name, e.what());
    }
  }
  std::size_t width = 0;
  for (const auto& [name, row] : rows) width = std::max(width, name.size());
  int wrong = 0, untouched = 0;
  for (const auto& [name, row] : rows) {
    if (row.cases > 0)
      fmt::print("{:<{}}  {:>5} checks  {:>4} wrong  largest relative error {:.2g}\n", name, width, row.cases,
                 row.wrong, row.max_relative_error);
    wrong += row.wrong;
  }
  // Of a selection of cases, or of a backend whose rows depend on the machine, not every row can be asked to take one.
  if (o.cases.empty() && o.step() == 1 && backend.name != "cpu")
    for (const Kernel& k : backend.kernels())
      if (rows[k.name].cases == 0) fmt::print("{}: took no case\n", k.name), ++untouched;
  fmt::print("{}: {} wrong, {} failed, {} rows without a case\n",
             wrong + failed + untouched == 0 ? "ok" : "NOT OK", wrong, failed, untouched);
  return wrong + failed + untouched == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  if (!parse(argc, argv, o)) {
    fmt::print(stderr, "usage: kf_check [--plugin FILE] [--backend NAME] [--cases REGEX] [--every N]\n");
    return kUsage;
  }
  try {
    return check(o);
  } catch (const std::exception& e) {
    fmt::print(stderr, "kf_check: {}\n", e.what());
    return 1;
  }
}
