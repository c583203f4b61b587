// The specification's configuration: its defaults, which kernels each switch lets through, and what is
// refused.
#include "kf/manager.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "case.h"
#include "kf/error.h"
#include "kf/families.h"

namespace kf {
namespace {

// q, k, v and out of a small dense attention.
class ManagerTest : public ::testing::Test {
 protected:
  AttentionParams dense_attention() {
    AttentionParams p;
    p.q = maker.normal(DType::f32, {1, 5, 4, 32});
    p.k = maker.normal(DType::f32, {1, 5, 2, 32});
    p.v = maker.normal(DType::f32, {1, 5, 2, 32});
    p.out = maker.filled(DType::f32, {1, 5, 4, 32}, 0.0f);
    return p;
  }
  AttentionParams paged_attention() {
    AttentionParams p;
    p.q = maker.normal(DType::f32, {2, 4, 32});
    p.k = maker.normal(DType::f32, {3, 2, 4, 32});
    p.v = maker.normal(DType::f32, {3, 2, 4, 32});
    p.out = maker.filled(DType::f32, {2, 4, 32}, 0.0f);
    p.tables.block_tables = maker.table({{2, -1}, {0, 1}});
    p.tables.context_lens = maker.integers(DType::i32, {3, 7});
    return p;
  }
  GatedFfnParams gated_ffn() {
    GatedFfnParams p;
    p.x = maker.normal(DType::f32, {3, 32});
    p.gate_weight = maker.normal(DType::f32, {64, 32});
    p.up_weight = maker.normal(DType::f32, {64, 32});
    p.down_weight = maker.normal(DType::f32, {32, 64});
    p.out = maker.filled(DType::f32, {3, 32}, 0.0f);
    return p;
  }
  // Families of the kernel that the manager takes for this call; empty: none.
  template <class P>
  static std::string taken(const KernelFusionConfig& config, const P& params) {
    KernelFusionManager m(config);
    const std::vector<Explained> rows = m.explain(params);
    const auto row = std::ranges::find(rows, true, &Explained::selected);
    return row == rows.end() ? "" : row->families;
  }
  template <class P>
  static ErrorCode refusal(const KernelFusionConfig& config, const P& params) {
    KernelFusionManager m(config);
    try {
      m.run(params);
    } catch (const Error& e) {
      return e.code();
    }
    ADD_FAILURE() << "no error";
    return ErrorCode::unavailable;
  }

  cases::Maker maker{"manager"};
};

TEST(KernelFusionConfig, DefaultsAreTheSpecifications) {
  const KernelFusionConfig c;
  EXPECT_EQ(c.attention_backend, AttentionBackend::flash2);
  EXPECT_TRUE(c.use_paged_attention && c.enable_gqa && c.fuse_ffn && c.fuse_gelu_linear &&
              c.fuse_silu_linear);
  EXPECT_TRUE(c.fuse_ln && c.fuse_ln_linear && c.fuse_rmsnorm && c.fuse_softmax && c.use_online_softmax);
  EXPECT_TRUE(c.enable_tf32 && c.enable_fp16 && c.log_fusion_stats);
  EXPECT_FALSE(c.fuse_with_quant || c.fuse_with_sparse || c.use_triton || c.use_cuda_graph || c.enable_bf16);
  EXPECT_FALSE(c.profile_kernels || c.allow_fallback);
  EXPECT_EQ(c.page_size, 16);
  EXPECT_EQ(c.backend, FusionBackend::cuda);
  EXPECT_FALSE(c.num_kv_heads || c.quant_dtype || c.sparse_pattern);
}

TEST(KernelFusionConfig, TheSelectionHasItsTf32) {
  const LinearParams p;
  KernelFusionManager allows, exact({.enable_tf32 = false});
  EXPECT_TRUE(allows.selection(Op::linear, &p).tf32);
  EXPECT_FALSE(exact.selection(Op::linear, &p).tf32);
}

TEST(KernelFusionConfig, FieldsOutOfRangeAreRefused) {
  EXPECT_THROW(KernelFusionManager({.page_size = 0}), Error);
  EXPECT_THROW(KernelFusionManager({.num_kv_heads = 0}), Error);
  EXPECT_THROW(KernelFusionManager({.quant_dtype = "int3"}), Error);
  EXPECT_THROW(KernelFusionManager({.sparse_pattern = "2:4"}), Error);
  EXPECT_THROW(KernelFusionManager({.num_threads = -1}), Error);
  EXPECT_THROW(KernelFusionManager({.num_threads = kMaxThreads + 1}), Error);
  EXPECT_THROW(KernelFusionConfig{}.is_on("fuse_everything"), Error);
}

TEST(KernelFusionConfig, EveryRuleIsGovernedByASwitch) {
  for (const Rule& rule : builtin_rules()) {
    if (!rule.flag.empty()) EXPECT_NO_THROW(KernelFusionConfig{}.is_on(rule.flag)) << rule.name;
  }
  EXPECT_TRUE(KernelFusionManager().fusion_policy().except.empty());
  const auto except = KernelFusionManager({.fuse_ffn = false}).fusion_policy().except;
  for (const Rule& rule : builtin_rules()) {
    EXPECT_EQ(std::ranges::count(except, rule.name), rule.flag == "fuse_ffn") << rule.name;
  }
}

TEST_F(ManagerTest, AttentionBackendsAreFamilies) {
  const AttentionParams dense = dense_attention(), paged = paged_attention();
  EXPECT_NE(taken({}, dense).find("fused"), std::string::npos);
  EXPECT_NE(taken({}, paged).find("fused"), std::string::npos);
  EXPECT_NE(taken({.attention_backend = AttentionBackend::paged}, paged).find("fused"), std::string::npos);
  EXPECT_EQ(taken({.attention_backend = AttentionBackend::vanilla}, dense), "vanilla");
  EXPECT_EQ(taken({.use_online_softmax = false}, dense), "vanilla");
  for (const auto backend :
       {AttentionBackend::flash3, AttentionBackend::xformers, AttentionBackend::triton}) {
    EXPECT_EQ(refusal({.attention_backend = backend}, dense), ErrorCode::not_implemented);
  }
}

TEST_F(ManagerTest, KernelsFromOutsideAreTakenWhereTheConfigurationNamesThem) {
  const auto families = [](const KernelFusionConfig& config, const auto& params) {
    return family_names(
        KernelFusionManager::selection(config, std::decay_t<decltype(params)>::kOp, &params).families);
  };
  AttentionParams attention = dense_attention();
  EXPECT_EQ(families({.attention_backend = AttentionBackend::flash3}, attention), "custom|flash3");
  EXPECT_EQ(families({.attention_backend = AttentionBackend::xformers}, attention), "custom|xformers");
  EXPECT_EQ(families({.attention_backend = AttentionBackend::triton}, attention), "custom|triton");
  EXPECT_EQ(families({}, attention), "custom|fused|library");
  GatedFfnParams ffn = gated_ffn();
  EXPECT_EQ(families({.use_triton = true}, ffn), "custom|triton|fused|library");
  EXPECT_EQ(families({.fuse_ffn = false, .use_triton = true}, ffn), "custom|vanilla");
  EXPECT_EQ(families({.backend = FusionBackend::triton}, ffn), "custom|fused|library");  // the CPU's
  ffn.x.device = {DeviceType::cuda, 0};
  EXPECT_EQ(families({.backend = FusionBackend::triton}, ffn), "custom|triton");
}

TEST_F(ManagerTest, ARefusalListsEveryKernel) {
  KernelFusionManager m({.attention_backend = AttentionBackend::flash3});
  const AttentionParams p = dense_attention();
  try {
    m.attention(p);
    FAIL() << "served";
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_TRUE(message.starts_with("attention_backend flash3: ")) << message;
    EXPECT_EQ(e.context().at("attention_backend"), "flash3");
    for (const Kernel* kernel : m.dispatcher().kernels(Op::attention)) {
      EXPECT_NE(message.find(kernel->name), std::string::npos) << kernel->name << " is not in: " << message;
    }
  }
  EXPECT_TRUE(m.stats().empty());
}

TEST_F(ManagerTest, PermittedFallbacksAreCounted) {
  KernelFusionManager m({.attention_backend = AttentionBackend::flash3, .allow_fallback = true});
  m.attention(dense_attention());
  const auto stats = m.stats();
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_EQ(stats.begin()->second.fallbacks, 1);
  m.reset();
  EXPECT_TRUE(m.stats().empty());
}

TEST_F(ManagerTest, AttentionMustFitTheConfiguration) {
  const AttentionParams dense = dense_attention(), paged = paged_attention();
  EXPECT_EQ(refusal({.attention_backend = AttentionBackend::paged}, dense), ErrorCode::invalid_argument);
  EXPECT_EQ(refusal({.use_paged_attention = false}, paged), ErrorCode::invalid_argument);
  EXPECT_EQ(refusal({.enable_gqa = false}, dense), ErrorCode::invalid_argument);
  EXPECT_EQ(refusal({.num_kv_heads = 4}, paged), ErrorCode::invalid_argument);
  KernelFusionManager({.num_kv_heads = 2}).attention(dense);
  KernelFusionManager({.num_kv_heads = 2}).attention(paged);
}

TEST_F(ManagerTest, SwitchesChooseBetweenFusedAndVanilla) {
  const GatedFfnParams ffn = gated_ffn();
  EXPECT_NE(taken({}, ffn).find("fused"), std::string::npos);
  EXPECT_EQ(taken({.fuse_ffn = false}, ffn), "vanilla");

  LinearParams linear;
  linear.x = maker.normal(DType::f32, {3, 32});
  linear.weight = maker.normal(DType::f32, {16, 32});
  linear.out = maker.filled(DType::f32, {3, 16}, 0.0f);
  linear.prologue.activation = Activation::gelu_tanh;
  EXPECT_NE(taken({.fuse_silu_linear = false}, linear).find("fused"), std::string::npos);
  EXPECT_NE(taken({.fuse_gelu_linear = false}, linear).find("vanilla"), std::string::npos);
  linear.prologue.activation = Activation::silu;
  EXPECT_NE(taken({.fuse_silu_linear = false}, linear).find("vanilla"), std::string::npos);
  linear.prologue = {.norm = NormKind::rms, .norm_weight = maker.normal(DType::f32, {32})};
  EXPECT_NE(taken({.fuse_ln_linear = false}, linear).find("vanilla"), std::string::npos);

  RmsNormParams norm;
  norm.x = maker.normal(DType::f32, {3, 32});
  norm.weight = maker.normal(DType::f32, {32});
  norm.out = maker.filled(DType::f32, {3, 32}, 0.0f);
  EXPECT_NE(taken({}, norm).find("fused"), std::string::npos);
  EXPECT_NE(taken({.fuse_rmsnorm = false}, norm).find("vanilla"), std::string::npos);
}

TEST_F(ManagerTest, SwitchedOffFormsGiveTheSameResults) {
  const GatedFfnParams p = gated_ffn();
  KernelFusionManager fused, vanilla({.fuse_ffn = false});
  fused.gated_ffn(p);
  std::vector<float> expected(p.out.as<float>(), p.out.as<float>() + p.out.numel());
  vanilla.gated_ffn(p);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    // Two sums, of 32 and of 64 terms, in another order.
    EXPECT_NEAR(p.out.as<float>()[i], expected[i], 96 * cases::unit_roundoff(DType::f32) * 64 * 32);
  }
}

TEST_F(ManagerTest, CustomKernelsComeFirst) {
  static int calls = 0;
  calls = 0;
  const Kernel custom = make_kernel<ActivationParams>(
      "test::activation_custom", kCustom, "",
      +[](const ActivationParams&, const PlanContext&) { return Support::yes(); },
      +[](const ActivationParams&, const RunContext&) { ++calls; });
  KernelFusionManager m({.custom_kernels = {custom}});
  ActivationParams p;
  p.x = maker.normal(DType::f32, {2, 8});
  p.out = maker.filled(DType::f32, {2, 8}, 0.0f);
  m.activation(p);
  EXPECT_EQ(calls, 1);
  const auto stats = m.stats();
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_EQ(stats.begin()->first.second, "test::activation_custom");
}

TEST_F(ManagerTest, StatisticsAreOptional) {
  KernelFusionManager silent({.log_fusion_stats = false}), timed({.profile_kernels = true});
  const AttentionParams p = dense_attention();
  silent.attention(p);
  timed.attention(p);
  EXPECT_TRUE(silent.stats().empty());
  EXPECT_GE(timed.stats().begin()->second.seconds, 0.0);
}

}  // namespace
}  // namespace kf
