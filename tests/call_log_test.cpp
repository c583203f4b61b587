// What a manager remembers of its calls, calls repeated beside their unfused form, and a configuration for one call.
#include "kf/call_log.h"

#include <gtest/gtest.h>

#include <string>

#include "case.h"
#include "graph/sample_data.h"
#include "kf/error.h"
#include "kf/manager.h"
#include "kf/replay.h"

namespace kf {
namespace {

class CallLogTest : public ::testing::Test {
 protected:
  AttentionParams attention(std::int64_t tokens) {
    AttentionParams p;
    p.q = maker.normal(DType::f32, {1, tokens, 4, 32});
    p.k = maker.normal(DType::f32, {1, tokens, 2, 32});
    p.v = maker.normal(DType::f32, {1, tokens, 2, 32});
    p.out = maker.filled(DType::f32, {1, tokens, 4, 32}, 0.0f);
    return p;
  }
  cases::Maker maker{"call_log"};
};

TEST_F(CallLogTest, RemembersEachLayoutOnceAndWithoutItsMemory) {
  KernelFusionManager m;
  for (const std::int64_t tokens : {5, 5, 9}) m.attention(attention(tokens));
  const std::vector<CallLog::Distinct> calls = m.log().distinct();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].sums.calls, 2);
  EXPECT_EQ(calls[1].sums.calls, 1);
  EXPECT_EQ(calls[0].params.as<AttentionParams>().q.dim(1), 5);
  EXPECT_EQ(calls[0].params.as<AttentionParams>().q.data, nullptr);
  EXPECT_EQ(m.stats().begin()->second.calls, 3);
  EXPECT_TRUE(m.log().spans().empty());  // nothing was timed
  m.reset();
  EXPECT_TRUE(m.log().distinct().empty() && m.stats().empty());
}

TEST_F(CallLogTest, TimedCallsHaveSpansInOrder) {
  KernelFusionManager m({.profile_kernels = true});
  for (int i = 0; i < 3; ++i) m.attention(attention(5));
  const std::vector<CallLog::Span> spans = m.log().spans();
  ASSERT_EQ(spans.size(), 3u);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    EXPECT_EQ(spans[i].op, Op::attention);
    EXPECT_GT(spans[i].seconds, 0.0);
    if (i > 0) EXPECT_LE(spans[i - 1].start + spans[i - 1].seconds, spans[i].start);
  }
}

TEST_F(CallLogTest, ReplayComparesTheCallWithItsUnfusedForm) {
  const AttentionParams p = attention(33);
  Dispatcher& d = default_dispatcher();
  const Replayed r = replay(Op::attention, &p, d, {}, {.families = kVanilla}, 0.01);
  EXPECT_EQ(r.baseline, "cpu::attention_unfused");
  EXPECT_NE(r.kernel, r.baseline);
  EXPECT_TRUE(r.agreed) << r.max_error;
  EXPECT_GT(r.seconds, 0.0);
  EXPECT_GT(r.baseline_seconds, 0.0);
  EXPECT_EQ(r.launches, 1);
  EXPECT_GT(r.baseline_launches, 1);
  EXPECT_GE(r.bytes, static_cast<double>(p.out.nbytes()));
  for (float value : {p.out.as<float>()[0], p.out.as<float>()[33 * 4 * 32 - 1]}) EXPECT_EQ(value, 0.0f);
}

TEST_F(CallLogTest, ReplayOfOperandsThatRunBackwards) {
  LinearParams p;
  p.x = maker.normal(DType::f32, {3, 64});
  p.weight = maker.normal(DType::f32, {32, 64});
  p.weight.data = p.weight.as<float>() + 31 * 64;
  p.weight.strides[0] = -64;
  p.out = maker.filled(DType::f32, {3, 32}, 0.0f);
  EXPECT_EQ(bytes_before(p.weight), 31 * 64 * sizeof(float));
  EXPECT_EQ(span_bytes(p.weight), 32 * 64 * sizeof(float));
  EXPECT_TRUE(replay(Op::linear, &p, default_dispatcher(), {}, {.families = kReference}, 0.001).agreed);
}

TEST_F(CallLogTest, AWrongKernelDoesNotAgree) {
  Dispatcher d(backend_by_name("cpu"));
  d.add_kernel(make_kernel<SoftmaxParams>(
      "wrong", kCustom, "always", [](const SoftmaxParams&, const PlanContext&) { return Support::yes(); },
      [](const SoftmaxParams& p, const RunContext&) { p.out.as<float>()[0] = 2.0f; }));
  SoftmaxParams p;
  p.x = maker.normal(DType::f32, {2, 8});
  p.out = maker.filled(DType::f32, {2, 8}, 0.0f);
  EXPECT_FALSE(replay(Op::softmax, &p, d, {.families = kCustom}, {.families = kVanilla}, 0.001).agreed);
}

TEST_F(CallLogTest, AConfigurationForOneCall) {
  KernelFusionManager m;
  const AttentionParams p = attention(5);
  const KernelFusionConfig vanilla{.attention_backend = AttentionBackend::vanilla};
  m.run(Op::attention, &p, vanilla);
  EXPECT_EQ(m.stats().begin()->first.second, "cpu::attention_unfused");
  EXPECT_EQ(m.plan(Op::attention, &p, vanilla)->kernel().name, "cpu::attention_unfused");
  EXPECT_NE(m.plan(Op::attention, &p, m.config())->kernel().name, "cpu::attention_unfused");
  const KernelFusionConfig no_gqa{.enable_gqa = false};
  EXPECT_THROW(m.run(Op::attention, &p, no_gqa), Error);
}

TEST_F(CallLogTest, AFallbackSaysWhatTheConfiguredKernelsSaid) {
  KernelFusionManager m({.attention_backend = AttentionBackend::xformers, .allow_fallback = true});
  m.attention(attention(5));
  const auto stats = m.stats();
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_EQ(stats.begin()->second.fallbacks, 1);
  EXPECT_EQ(stats.begin()->second.fallback_reason, "there is no kernel of custom|xformers");
}

TEST_F(CallLogTest, GraphCaptureLeavesOutKernelsThatCannotBeRecorded) {
  Kernel k = make_kernel<SoftmaxParams>(
      "host_only", kCustom, "always", [](const SoftmaxParams&, const PlanContext&) { return Support::yes(); },
      [](const SoftmaxParams&, const RunContext&) {});
  k.graph_safe = false;
  KernelFusionConfig config;
  config.custom_kernels.push_back(k);
  KernelFusionManager m(config);
  SoftmaxParams p;
  p.x = maker.normal(DType::f32, {2, 8});
  p.out = maker.filled(DType::f32, {2, 8}, 0.0f);
  EXPECT_EQ(m.plan(Op::softmax, &p, config)->kernel().name, "host_only");
  config.use_cuda_graph = true;
  EXPECT_NE(m.plan(Op::softmax, &p, config)->kernel().name, "host_only");
  const auto rows = m.explain(Op::softmax, &p, config);
  EXPECT_EQ(rows[0].reason, "one whose launches may not be recorded into a graph");
}

TEST_F(CallLogTest, ADeviceWithoutABackendNamesTheConfiguredOne) {
  KernelFusionManager m({.backend = FusionBackend::triton});
  SoftmaxParams p;
  p.x = maker.normal(DType::f32, {2, 8});
  p.out = maker.filled(DType::f32, {2, 8}, 0.0f);
  p.x.device = p.out.device = {DeviceType::mlu, 0};
  try {
    m.softmax(p);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::unavailable);
    EXPECT_NE(std::string(e.what()).find("backend triton: no backend for tensors on mlu:0"),
              std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace kf
