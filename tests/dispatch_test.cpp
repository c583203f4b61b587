// Choice of kernels: order, families, refusals with reasons, fallback, custom rows, plans, telemetry.

#include <gtest/gtest.h>

#include <thread>

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
