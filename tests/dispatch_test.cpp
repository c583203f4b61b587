// Choice of kernels: order, families, refusals with reasons, fallback, custom rows, plans, telemetry.

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "core/half.h"
#include "kf/kf.h"

namespace kf {
namespace {

struct Call {
  Tensor x = Tensor::zeros(DType::f32, {2, 8}), w = Tensor::zeros(DType::f32, {8}), out = Tensor::zeros(DType::f32, {2, 8});
  RmsNormParams params{.x = x, .weight = w, .out = out};
};

Support never(const RmsNormParams&, const PlanContext&) { return Support::no("eps 1e-06: this kernel takes none"); }
Support always(const RmsNormParams&, const PlanContext&) { return Support::yes(); }
void write_seven(const RmsNormParams& p, const RunContext&) { p.out.as<float>()[0] = 7.0f; }

TEST(Dispatch, CustomRowsComeFirst) {
  Dispatcher d(backend_by_name("cpu"));
  Call c;
  d.add_kernel(make_kernel<RmsNormParams>("custom::seven", kCustom, "always", always, write_seven));
  d.run(c.params);
  EXPECT_EQ(c.out.as<float>()[0], 7.0f);
  EXPECT_EQ(d.plan(c.params)->kernel().name, "custom::seven");
}

TEST(Dispatch, RefusalNamesEveryKernelAndItsReason) {
  Dispatcher d(backend_by_name("cpu"));
  Call c;
  d.add_kernel(make_kernel<RmsNormParams>("custom::never", kCustom, "never", never, write_seven));
  try {
    d.plan(c.params, {.families = kCustom});
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::not_implemented);
    const std::string what = e.what();
    EXPECT_NE(what.find("custom::never: eps 1e-06"), std::string::npos) << what;
    for (const Kernel* k : d.kernels(Op::rms_norm)) EXPECT_NE(what.find(k->name), std::string::npos) << what;
    EXPECT_NE(what.find("cpu::rms_norm_plain: would serve, but is of family fused|vanilla"), std::string::npos) << what;
    EXPECT_NE(what.find("allow_fallback"), std::string::npos) << what;
  }
}

TEST(Dispatch, FallbackIsSuggestedOnlyWhereItWouldHelp) {
  Backend choosy = backend_by_name("cpu");
  choosy.kernels = [] {
    return std::vector<Kernel>{make_kernel<RmsNormParams>(
        "cpu::never", kVanilla, "never", +[](const RmsNormParams&, const PlanContext&) { return Support::no("never"); },
        +[](const RmsNormParams&, const RunContext&) {})};
  };
  Dispatcher d(choosy);
  Call c;
  try {
    d.plan(c.params);
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("cpu::never: never"), std::string::npos) << e.what();
    EXPECT_EQ(std::string(e.what()).find("allow_fallback"), std::string::npos) << e.what();
  }
}

TEST(Dispatch, FallbackOnlyWhereAllowedAndCounted) {
  Counters counters;
  Dispatcher d(backend_by_name("cpu"), {.sink = &counters});
  Call c;
  EXPECT_THROW(d.run(c.params, {.families = kLibrary}), Error);
  EXPECT_EQ(counters.launches(), 0);
  d.run(c.params, {.families = kLibrary, .allow_fallback = true});
  std::int64_t fallbacks = 0;
  for (const auto& [key, entry] : counters.snapshot()) fallbacks += entry.fallbacks;
  EXPECT_EQ(fallbacks, 1);
}

TEST(Dispatch, ExplainListsRowsInOrderWithOneSelected) {
  Dispatcher d(backend_by_name("cpu"));
  Call c;
  const auto rows = d.explain(c.params);
  ASSERT_EQ(rows.size(), d.kernels(Op::rms_norm).size());
  int selected = 0;
  for (const Explained& e : rows) {
    selected += e.selected;
    EXPECT_TRUE(e.selected || !e.reason.empty() || (e.supported && e.allowed)) << e.kernel;
  }
  EXPECT_EQ(selected, 1);
  EXPECT_EQ(rows.back().families, "reference");
}

TEST(Dispatch, ErrorsLeaveOutputsAsTheyWere) {
  Dispatcher d(backend_by_name("cpu"));
  Call c;
  c.out.as<float>()[0] = 42.0f;
  c.params.weight = Tensor(DType::f32, {7});
  EXPECT_THROW(d.run(c.params), Error);
  EXPECT_EQ(c.out.as<float>()[0], 42.0f);
}

TEST(Dispatch, WrongDeviceIsNamed) {
  Dispatcher d(backend_by_name("cpu"));
  Call c;
  c.params.x.device = {DeviceType::cuda, 1};
  try {
    d.run(c.params);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("cuda:1"), std::string::npos) << e.what();
  }
}

TEST(Dispatch, PlansAreCachedByLayout) {
  Dispatcher d(backend_by_name("cpu"));
  Call a, b;
  EXPECT_EQ(d.plan(a.params), d.plan(b.params));
  b.params.eps = 1e-3f;
  EXPECT_NE(d.plan(a.params), d.plan(b.params));
}

TEST(Dispatch, RoundingToTf32IsAPlanOfItsOwnAndReachesTheKernel) {
  Dispatcher d(backend_by_name("cpu"));
  d.add_kernel(make_kernel<RmsNormParams>(
      "custom::only_tf32", kCustom, "tf32",
      +[](const RmsNormParams&, const PlanContext& ctx) {
        return ctx.tf32 ? Support::yes() : Support::no("exact f32 is asked for");
      },
      write_seven));
  Call c;
  const auto exact = d.plan(c.params), rounded = d.plan(c.params, {.tf32 = true});
  EXPECT_NE(exact->kernel().name, "custom::only_tf32");
  EXPECT_EQ(rounded->kernel().name, "custom::only_tf32");
  EXPECT_EQ(d.plan(c.params), exact);
  EXPECT_TRUE(d.explain(Op::rms_norm, &c.params, {.tf32 = true}).front().selected);
  EXPECT_FALSE(d.explain(Op::rms_norm, &c.params, {}).front().selected);
}

TEST(Dispatch, CompositionsPassRoundingToTf32On) {
  Dispatcher d(backend_by_name("cpu"));
  Kernel product = make_kernel<LinearParams>(
      "cpu::product_tf32", kVanilla, "tf32",
      +[](const LinearParams& p, const PlanContext& ctx) {
        return ctx.tf32 && p.prologue.empty() && p.activation == Activation::none && !p.residual.present()
                   ? Support::yes()
                   : Support::no("a bare product in TF32");
      },
      +[](const LinearParams& p, const RunContext&) { p.out.as<float>()[0] = 7.0f; });
  d.add_kernel(product);
  Tensor x = Tensor::zeros(DType::f32, {2, 8}), w = Tensor::zeros(DType::f32, {4, 8}), out = Tensor::zeros(DType::f32, {2, 4});
  LinearParams p{.x = x, .weight = w, .out = out};
  p.activation = Activation::relu;
  const Selection unfused{.families = kVanilla, .kernel = "cpu::linear_unfused"};
  d.run(p, unfused);
  EXPECT_EQ(out.as<float>()[0], 0.0f);
  Selection rounded = unfused;
  rounded.tf32 = true;
  d.run(p, rounded);
  EXPECT_EQ(out.as<float>()[0], 7.0f);
}

TEST(Dispatch, ThreadsAreCountedAndBounded) {
  for (const int threads : {-1, kMaxThreads + 1, 1 << 30}) {
    try {
      Dispatcher d(backend_by_name("cpu"), {.num_threads = threads});
      FAIL() << threads << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      EXPECT_NE(std::string(e.what()).find(std::to_string(threads)), std::string::npos) << e.what();
    }
  }
  EXPECT_EQ(Dispatcher(backend_by_name("cpu"), {.num_threads = 3}).num_threads(), 3);
}

TEST(Dispatch, KernelsThatCannotBeCalledAreRefused) {
  Dispatcher d(backend_by_name("cpu"));
  const auto good = make_kernel<RmsNormParams>("custom::seven", kCustom, "always", always, write_seven);
  for (int i = 0; i < 6; ++i) {
    Kernel k = good;
    if (i == 0) k.supports = nullptr;
    if (i == 1) k.prepare = nullptr;
    if (i == 2) k.run = nullptr;
    if (i == 3) k.name = d.kernels().front()->name;
    if (i == 4) k.families = 0;
    if (i == 5) k.device_type = DeviceType::mlu;
    try {
      d.add_kernel(k);
      FAIL() << "kernel " << i << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      EXPECT_NE(std::string(e.what()).find(k.name), std::string::npos) << e.what();
    }
  }
  d.add_kernel(good);
  EXPECT_THROW(d.add_kernel(good), Error);
}

TEST(Dispatch, PlansInUseOutliveThoseThatAreNot) {
  Dispatcher d(backend_by_name("cpu"));
  Call kept;
  const auto plan = d.plan(kept.params);
  for (int i = 0; i < 5000; ++i) {
    Call other;
    other.params.eps = 1.0f + static_cast<float>(i);
    d.plan(other.params);
    if (i % 1000 == 0) EXPECT_EQ(d.plan(kept.params), plan) << i;
  }
  EXPECT_EQ(d.plan(kept.params), plan);
  Call first;
  first.params.eps = 1.0f;
  EXPECT_NO_THROW(d.plan(first.params));  // planned anew
}

TEST(Dispatch, StreamsReachTheKernel) {
  static const void* seen = nullptr;
  Dispatcher d(backend_by_name("cpu"));
  d.add_kernel(make_kernel<RmsNormParams>(
      "custom::stream", kCustom, "always", always,
      +[](const RmsNormParams&, const RunContext& ctx) { seen = ctx.stream; }));
  Call c;
  int queue = 0;
  d.run(c.params, {.stream = &queue});
  EXPECT_EQ(seen, &queue);
  d.run(c.params, {.families = kCustom}, {.stream = nullptr});
  EXPECT_EQ(seen, nullptr);
  d.execute(*d.plan(c.params), &c.params, nullptr, {.stream = &queue});
  EXPECT_EQ(seen, &queue);
}

TEST(Dispatch, DevicesWithoutABackendAreNamed) {
  Call c;
  for (TensorView* t : {&c.params.x, &c.params.weight, &c.params.out}) t->device = {DeviceType::kunlun, 2};
  for (const auto& run : std::vector<std::function<void()>>{
           [&] { rms_norm(c.params); }, [&] { KernelFusionManager().rms_norm(c.params); }}) {
    try {
      run();
      FAIL() << "served";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::unavailable);
      EXPECT_NE(std::string(e.what()).find("kunlun:2"), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("cpu"), std::string::npos) << e.what();
    }
  }
}

TEST(Dispatch, AnUnusableBackendSaysWhy) {
  Backend absent = backend_by_name("cpu");
  absent.name = "toy";
  absent.device_type = DeviceType::mlu;
  absent.available = [] { return Support::no("no driver in /dev"); };
  const Backend* const all[] = {&backend_by_name("cpu"), &absent};
  DispatcherSet set({}, all);
  EXPECT_EQ(&set.on({}), &set.on({}));
  for (int i = 0; i < 2; ++i) {  // and again, not only at first
    try {
      set.on({DeviceType::mlu, 0});
      FAIL() << "available";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::unavailable);
      EXPECT_NE(std::string(e.what()).find("no driver in /dev"), std::string::npos) << e.what();
    }
  }
  EXPECT_EQ(set.made().size(), 1u);
}

// Threads that share a dispatcher share its plans and workspaces.
TEST(Dispatch, OneDispatcherInTwoThreads) {
  Dispatcher d(backend_by_name("cpu"), {.num_threads = 1});
  const auto work = [&](std::int64_t columns, bool* right) {
    const Tensor x(DType::f16, {3, columns}), out(DType::f16, {3, columns});
    for (std::int64_t i = 0; i < 3 * columns; ++i) x.as<std::uint16_t>()[i] = 0x3c00;  // 1.0
    for (int i = 0; i < 300; ++i) {
      SoftmaxParams softmax{.x = x, .out = out};
      d.run(softmax);
      const float p = 1.0f / static_cast<float>(columns);  // a power of two: exact in f16
      for (std::int64_t k = 0; k < 3 * columns; ++k)
        *right = *right && f16_to_f32(out.as<std::uint16_t>()[k]) == p;
      Call c;
      c.params.eps = 1e-6f * static_cast<float>(i % 7 + 1);
      d.run(c.params);
    }
  };
  bool right[4] = {true, true, true, true};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) threads.emplace_back(work, std::int64_t{8} << t, &right[t]);
  for (std::thread& t : threads) t.join();
  for (bool r : right) EXPECT_TRUE(r);
}

TEST(Dispatch, TwoManagersInTwoThreads) {
  auto work = [] {
    Dispatcher d(backend_by_name("cpu"));
    Call c;
    for (int i = 0; i < 16; ++i) c.x.as<float>()[i] = c.w.as<float>()[i % 8] = 1.0f;
    for (int i = 0; i < 200; ++i) d.run(c.params);
    EXPECT_NEAR(c.out.as<float>()[3], 1.0f, 1e-5f);
  };
  std::thread a(work), b(work);
  a.join();
  b.join();
}

TEST(Dispatch, UnknownBackendListsWhatThereIs) {
  try {
    backend_by_name("abacus");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::unavailable);
    EXPECT_NE(std::string(e.what()).find("cpu"), std::string::npos);
  }
}

}  // namespace
}  // namespace kf
