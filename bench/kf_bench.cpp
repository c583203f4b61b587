// kf_bench: the benchmark-sized cases on Google Benchmark. Each pair is the unfused composition (vanilla family) and
// the kernel that a default call takes; a pair whose results differ by more than the case's tolerance is an error.
//   kf_bench --benchmark_filter=rms_norm

#include <benchmark/benchmark.h>

#include <fmt/format.h>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/error.h"
#include "runner.h"

namespace {

using kf::cases::Case;

void run_case(benchmark::State& state, const Case& c, const kf::Selection& selection) {
  kf::Dispatcher& d = kf::default_dispatcher();
  const kf::cases::Instance instance = kf::cases::instantiate(c);
  kf::PackCache packs;
  std::shared_ptr<const kf::Plan> plan;
  try {
    plan = d.plan(c.op, instance.params.data(), selection, &packs);
  } catch (const kf::Error& e) {
    state.SkipWithError(e.what());
    return;
  }
  const auto workspace = kf::allocate_host(plan->workspace_bytes());
  const kf::RunContext ctx{workspace.get(), d.num_threads(), nullptr};
  plan->run(instance.params.data(), ctx);
  for (auto _ : state) plan->run(instance.params.data(), ctx);
  state.SetLabel(plan->kernel().name);
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = benchmark::Counter(plan->cost().bytes / 1e9, per_second);
  state.counters["GFLOP/s"] = benchmark::Counter(plan->cost().flops / 1e9, per_second);
}

// Checked first: what is wrong is not timed.
void run_checked(benchmark::State& state, const Case& c, const kf::Selection& selection) {
  const kf::Selection reference{.families = kf::kVanilla | kf::kReference, .allow_fallback = false, .kernel = {}};
  const auto timing = kf::cases::time_case(c, kf::default_dispatcher(), reference, selection, 0.0);
  if (!timing.check.ok) return state.SkipWithError(timing.check.detail.c_str());
  run_case(state, c, selection);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const kf::Selection unfused{.families = kf::kVanilla, .allow_fallback = false, .kernel = {}};
  for (const Case& c : kf::cases::all_cases()) {
    if (!c.bench) continue;
    benchmark::RegisterBenchmark((c.name + "/unfused").c_str(), run_case, c, unfused)->UseRealTime();
    benchmark::RegisterBenchmark((c.name + "/fused").c_str(), run_checked, c, kf::Selection{})->UseRealTime();
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
