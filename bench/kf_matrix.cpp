// kf_matrix: the support matrix, generated from the cases: for every op, which kernel accepts how many of the cases of
// each data type. `make docs` writes it to docs/support-matrix.md.

#include <cstdio>
#include <map>
#include <set>

#include <fmt/format.h>

#include "case.h"
#include "kf/dispatch.h"
#include "runner.h"

namespace {

using kf::Slot;
using kf::cases::Case;

// The data types of a call that kernels choose by: the first operand's, and the weight's or cache's where there is one.
std::string dtypes_of(const Case& c, kf::AnyParams& params) {
  std::string out;
  for (const Slot& s : kf::slots_of(c.op, params.data())) {
    if (!s.tensor->present()) continue;
    const std::string name = s.name;
    if (out.empty()) {
      out = kf::dtype_name(s.tensor->dtype);
    } else if (name == "weight" || name == "q_weight" || name == "gate_weight" || name == "k" || name == "k_cache" ||
               name == "table") {
      if (c.op == kf::Op::rms_norm || c.op == kf::Op::layer_norm) continue;  // a norm's weight is a detail
      out += fmt::format(" × {}", kf::dtype_name(s.tensor->dtype));
      break;
    }
  }
  return out;
}

}  // namespace

int main() {
  kf::Dispatcher& d = kf::default_dispatcher();
  fmt::print(
      "# Support matrix of the CPU backend\n\nGenerated from the cases by `make docs`. A cell says how many of the cases of these "
      "data types a kernel accepts; the first kernel that accepts runs. Data types are those of the first operand × "
      "the weight or cache.\n");
  for (const kf::OpInfo& op : kf::all_ops()) {
    // kernel -> dtypes -> (accepted, all)
    std::map<std::string, std::map<std::string, std::pair<int, int>>> cells;
    std::set<std::string> columns;
    for (const Case& c : kf::cases::all_cases()) {
      if (c.op != op.op || c.bench) continue;
      kf::cases::Instance instance = kf::cases::instantiate(c);
      const std::string column = dtypes_of(c, instance.params);
      columns.insert(column);
      kf::PackCache packs;
      const kf::PlanContext ctx{d.caps(), d, d.num_threads(), &packs};
      for (const kf::Kernel* k : d.kernels(op.op)) {
        auto& [accepted, all] = cells[k->name][column];
        ++all;
        if (k->supports(instance.params.data(), ctx)) ++accepted;
      }
    }
    fmt::print("\n## {}\n\n`{}`\n\n| kernel | family | serves |", op.name, op.summary);
    for (const std::string& c : columns) fmt::print(" {} |", c);
    fmt::print("\n|---|---|---|");
    for (std::size_t i = 0; i < columns.size(); ++i) fmt::print("---|");
    for (const kf::Kernel* k : d.kernels(op.op)) {
      fmt::print("\n| `{}` | {} | {} |", k->name, kf::family_names(k->families), k->condition);
      for (const std::string& c : columns) {
        const auto [accepted, all] = cells[k->name][c];
        fmt::print(" {} |", accepted == 0 ? "no" : accepted == all ? fmt::format("all {}", all) : fmt::format("{} of {}", accepted, all));
      }
    }
    fmt::print("\n");
  }
  return 0;
}
