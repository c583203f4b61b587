// What the core, graphs and the cases need of a device goes through its backend's hooks.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "case.h"
#include "kf/kf.h"
#include "runner.h"
#include "toy_device.h"

namespace kf {
namespace {

using tests::kToy, tests::make_toy_backend, tests::toy_counts;

// Fused, vanilla of one pass, and of these ops: enough for a graph and its unfused form.
const Backend& toy_backend() {
  static const Backend toy = make_toy_backend([](const Kernel& k) {
    return (k.families & (kFused | kVanilla)) &&
           (k.op == Op::rms_norm || k.op == Op::binary || k.op == Op::softmax || k.op == Op::append_kv ||
            k.op == Op::embedding);
  });
  return toy;
}

// A host tensor's copy on the toy.
struct OnToy {
  OnToy(Dispatcher& d, const TensorView& t) : storage(d.allocate(t.nbytes())), view(t) {
    d.copy(storage.get(), t.data, t.nbytes(), CopyDirection::to_device);
    view.data = storage.get();
    view.device = kToy;
  }
  std::shared_ptr<void> storage;
  TensorView view;
};

TEST(DeviceBackend, CasesRunAgainstTheCpusReference) {
  {
    Dispatcher d(toy_backend());
    std::set<std::string> served;
    std::map<Op, int> seen;
    for (const cases::Case& c : cases::all_cases()) {
      // One in five of each op: how operands get there and back does not depend on much.
      if (c.bench || d.kernels(c.op).empty() || seen[c.op]++ % 5 != 0) continue;
      for (const cases::KernelCheck& k : cases::check_case(c, d)) {
        if (!k.supported) continue;
        served.insert(k.kernel);
        EXPECT_TRUE(k.result.ok) << c.name << " on " << k.kernel << ": " << k.result.detail;
      }
    }
    for (const char* name :
         {"toy::rms_norm_plain", "toy::rms_norm_unfused", "toy::append_kv_plain", "toy::softmax_plain"})
      EXPECT_TRUE(served.contains(name)) << name;
    EXPECT_GT(toy_counts().synchronisations, 0);
  }
  EXPECT_EQ(toy_counts().live_allocations, 0);
}

// A kernel that is off as one on TF32 units is: taken where the call lets f32 be rounded, and only there.
TEST(DeviceBackend, ACheckAllowsTf32WhereTheCallDoes) {
  const Backend plain =
      make_toy_backend([](const Kernel& k) { return k.op == Op::linear && k.families != kReference; });
  Backend rough = plain;
  rough.kernels = [&plain] {
    std::vector<Kernel> all = plain.kernels();
    Kernel k = *std::ranges::find(all, "toy::linear_fused", &Kernel::name);
    k.name = "toy::rough";
    k.families = kCustom;
    k.run = [run = k.run](const void* params, const void* state, const RunContext& ctx) {
      auto p = *static_cast<const LinearParams*>(params);
      p.prologue.eps += 4e-3f;
      run(&p, state, ctx);
    };
    all.insert(all.begin(), checked_kernel(std::move(k)));
    return all;
  };
  Dispatcher d(rough);
  const auto layout = [](std::initializer_list<std::int64_t> shape) {
    return TensorView::contiguous(nullptr, DType::f32, shape, kToy);
  };
  LinearParams p{.x = layout({3, 64}), .weight = layout({8, 64}), .out = layout({3, 8})};
  p.prologue.norm = NormKind::rms;
  p.prologue.norm_weight = layout({64});
  const Selection exact{.families = kCustom};
  Selection rounded = exact;
  rounded.tf32 = true;
  EXPECT_EQ(d.plan(p, rounded)->kernel().name, "toy::rough");
  EXPECT_THROW(d.plan(p, exact), Error);
}

TEST(DeviceBackend, AWrongKernelIsFound) {
  Backend wrong = toy_backend();
  wrong.kernels = [] {
    std::vector<Kernel> all = toy_backend().kernels();
    for (Kernel& k : all)
      if (k.op == Op::binary) k.run = [](const void*, const void*, const RunContext&) {};
    return all;
  };
  Dispatcher d(wrong);
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || c.op != Op::binary || cases::instantiate(c).params.as<BinaryParams>().a.numel() == 0)
      continue;
    for (const cases::KernelCheck& k : cases::check_case(c, d)) EXPECT_FALSE(k.result.ok) << c.name;
    return;
  }
  FAIL() << "no case of binary";
}

TEST(DeviceBackend, AnOpWithoutAKernelIsRefused) {
  Dispatcher d(toy_backend());
  const TensorView x{.device = kToy, .rank = 2, .shape = {0, 0}, .strides = {1, 1}};
  try {
    d.plan(DequantizeParams{.x = x, .out = x});
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::not_implemented);
    EXPECT_EQ(std::string(e.what()), "backend toy has no kernel for dequantize");
  }
}

TEST(DeviceBackend, CallsAreTimedAndChecked) {
  Dispatcher d(toy_backend());
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || c.op != Op::softmax) continue;
    const auto t = cases::time_case(c, d, {.families = kVanilla}, {.families = kFused}, 0.0);
    EXPECT_TRUE(t.check.ok) << t.check.detail;
    EXPECT_EQ(t.baseline, "toy::softmax_plain");
    return;
  }
}

TEST(DeviceBackend, ItsClockTimesRowsOfConstantWeightsToo) {
  Backend timed = toy_backend();
  timed.time = [](int, const std::function<void(void*)>& enqueue) {
    enqueue(nullptr);
    return 1.0;
  };
  timed.kernels = [] {
    std::vector<Kernel> all = toy_backend().kernels();
    for (Kernel& k : all)
      k.supports = [supports = k.supports](const void* params, const PlanContext& ctx) {
        return ctx.packs == nullptr ? Support::no("a weight that may change") : supports(params, ctx);
      };
    return all;
  };
  Dispatcher d(timed);
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || c.op != Op::softmax) continue;
    const auto t = cases::time_on_device(c, d, {.families = kVanilla});
    EXPECT_EQ(t.kernel, "toy::softmax_plain");
    EXPECT_TRUE(t.check.ok) << t.check.detail;
    return;
  }
}

TEST(DeviceBackend, DispatchersAreChosenByTheTensors) {
  const Backend* const all[] = {&backend_by_name("cpu"), &toy_backend()};
  Counters counters(/*timed=*/true);
  DispatcherSet set({.sink = &counters}, all);
  set.add_kernel([] {
    Kernel k = make_kernel<ActivationParams>(
        "custom::nothing", kCustom, "always",
        +[](const ActivationParams&, const PlanContext&) { return Support::yes(); },
        +[](const ActivationParams&, const RunContext&) {});
    k.device_type = kToy.type;
    return k;
  }());
  cases::Maker m("set");
  RmsNormParams p{.x = m.normal(DType::f32, {2, 8}),
                  .weight = m.filled(DType::f32, {8}, 1),
                  .out = m.filled(DType::f32, {2, 8}, 9)};
  set.serving(Op::rms_norm, &p).run(p);
  const OnToy x(set.on(kToy), p.x), weight(set.on(kToy), p.weight), out(set.on(kToy), p.out);
  const RmsNormParams q{.x = x.view, .weight = weight.view, .out = out.view};
  int queue = 0;
  EXPECT_EQ(&set.serving(Op::rms_norm, &q), &set.on(kToy));
  set.serving(Op::rms_norm, &q).run(q, {.stream = &queue});
  EXPECT_EQ(toy_counts().last_stream, &queue);
  std::vector<float> result(16);
  set.on(kToy).copy(result.data(), out.view.data, 64, CopyDirection::to_host);
  EXPECT_EQ(std::memcmp(result.data(), p.out.data, 64), 0);
  EXPECT_EQ(counters.snapshot().size(), 2u);  // cpu:: and toy::
  EXPECT_TRUE(set.on({}).kernels(Op::activation).front()->name.starts_with("cpu::"));
  EXPECT_EQ(set.on(kToy).kernels(Op::activation).front()->name, "custom::nothing");

  RmsNormParams mixed = q;
  mixed.weight = p.weight;
  EXPECT_THROW(set.serving(Op::rms_norm, &mixed).run(mixed), Error);
  EXPECT_THROW(set.on({kToy.type, 1}), Error);
}

std::vector<std::string> ranges;

TEST(DeviceBackend, RunsAreRangesForAProfiler) {
  Backend b = toy_backend();
  b.ranges = {[](const char* name) { ranges.emplace_back(name); }, [] { ranges.emplace_back("end"); }};
  b.kernels = [] {
    std::vector<Kernel> all = toy_backend().kernels();
    for (Kernel& k : all)
      if (k.op == Op::binary)
        k.run = [](const void*, const void*, const RunContext&) { throw_invalid("no"); };
    return all;
  };
  Dispatcher d(b);
  cases::Maker m("ranges");
  const OnToy x(d, m.normal(DType::f32, {2, 8})), w(d, m.filled(DType::f32, {8}, 1)),
      out(d, m.filled(DType::f32, {2, 8}, 9));
  ranges.clear();
  d.run(RmsNormParams{.x = x.view, .weight = w.view, .out = out.view});
  EXPECT_EQ(ranges, (std::vector<std::string>{"toy::rms_norm_plain", "end"}));
  ranges.clear();
  EXPECT_THROW(d.run(BinaryParams{.a = x.view, .b = x.view, .out = out.view}), Error);
  EXPECT_EQ(ranges, (std::vector<std::string>{"toy::binary_plain", "end"}));
  Graph g;
  const ValueId a = g.input("x", DType::f32, {2, 8}, kToy);
  g.output("y", g.call(RmsNormParams{}, {{"x", a}, {"weight", g.constant("w", w.view)}}).out());
  Executable e(g, {}, d, {.selection = {.families = kFused | kVanilla}});
  e.bind("x", x.view);
  ranges.clear();
  e.run();
  EXPECT_EQ(ranges, (std::vector<std::string>{"toy::rms_norm_plain", "end"}));
}

TEST(DeviceBackend, WhatMayNotBeRecordedIsRefusedBeforeItSpoilsARecording) {
  Backend b = toy_backend();
  static void* recorded = nullptr;
  b.recorder = tests::toy_recorder();
  b.recorder.is_recording = [](int, void* stream) { return stream == recorded; };
  Dispatcher d(b);
  Kernel unsafe = make_kernel<RmsNormParams>(
      "custom::unsafe", kCustom, "always",
      +[](const RmsNormParams&, const PlanContext&) { return Support::yes(); },
      +[](const RmsNormParams&, const RunContext&) { FAIL() << "it ran"; });
  unsafe.device_type = kToy.type;
  unsafe.graph_safe = false;
  d.add_kernel(unsafe);
  cases::Maker m("recorded");
  const OnToy x(d, m.normal(DType::f32, {2, 8})), w(d, m.filled(DType::f32, {8}, 1)),
      out(d, m.filled(DType::f32, {2, 8}, 9));
  const RmsNormParams p{.x = x.view, .weight = w.view, .out = out.view};
  int stream = 0;
  recorded = &stream;
  try {
    d.run(p, {.stream = &stream});
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(e.what()).find("custom::unsafe may not be recorded"), std::string::npos)
        << e.what();
  }
  d.run(p, {.graph_safe = true}, {.stream = &stream});  // the next kernel, which may be
}

TEST(DeviceBackend, GraphsAreMeasuredAndRunThere) {
  Dispatcher d(toy_backend());
  cases::Maker m("graph");
  const TensorView x = m.normal(DType::f32, {4, 64}), r = m.normal(DType::f32, {4, 64});
  const OnToy weight(d, m.filled(DType::f32, {64}, 1));
  Graph g;
  const ValueId a = g.input("x", DType::f32, {g.symbol("n"), 64}, kToy);
  const ValueId b = g.input("residual", DType::f32, {g.symbol("n"), 64}, kToy);
  const ValueId sum = g.call(BinaryParams{}, {{"a", a}, {"b", b}}).out();
  g.output("y", g.call(RmsNormParams{}, {{"x", sum}, {"weight", g.constant("w", weight.view)}}).out());
  g.output("sum", sum);

  std::vector<Applied> applied;
  Counters counters;
  d.set_sink(&counters);
  fuse(g, {{"n", 4}}, {.only = {"residual_rms_norm"}}, d, nullptr, &applied);
  ASSERT_EQ(applied.size(), 1u);
  EXPECT_NE(applied[0].reason.find("ms unfused"), std::string::npos) << applied[0].reason;
  EXPECT_EQ(counters.launches(), 0) << "measuring is not the caller's calls";

  const Graph fused = fuse(g, {{"n", 4}}, {.mode = FusionPolicy::Mode::all}, d);
  EXPECT_EQ(fused.nodes().size(), 1u);
  std::vector<std::vector<float>> results;
  for (const Graph* form : std::initializer_list<const Graph*>{&g, &fused}) {
    const OnToy dx(d, x), dr(d, r);
    Executable e(*form, {{"n", 4}}, d, {.selection = {.families = kFused | kVanilla}});
    e.bind("x", dx.view);
    e.bind("residual", dr.view);
    e.run();
    results.emplace_back(4 * 64);
    d.copy(results.back().data(), e.output("y").data, 4 * 64 * sizeof(float), CopyDirection::to_host);
  }
  EXPECT_GT(counters.launches(), 0);
  for (std::size_t i = 0; i < results[0].size(); ++i) EXPECT_NEAR(results[0][i], results[1][i], 1e-5f);
}

}  // namespace
}  // namespace kf
