// What the ROCm backend's rows say of calls, and what they launch, by architecture, without a card.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "backend.h"
#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/device/limits.h"
#include "kf/families.h"

namespace kf {
namespace {

constexpr int kComputeUnits = 60;  // the lockstep machine's

class RocmPlans : public testing::TestWithParam<const char*> {
 protected:
  TensorView there(DType dtype, std::initializer_list<std::int64_t> shape) {
    TensorView t = TensorView::contiguous(nullptr, dtype, shape, {DeviceType::rocm, 0});
    memory_.emplace_back(t.nbytes() / 16 + 1);
    t.data = memory_.back().data();
    return t;
  }
  AttentionParams attention(DType dtype, std::int64_t head_dim, std::int64_t tokens) {
    return {.q = there(dtype, {2, tokens, 8, head_dim}),
            .k = there(dtype, {2, 128, 2, head_dim}),
            .v = there(dtype, {2, 128, 2, head_dim}),
            .out = there(dtype, {2, tokens, 8, head_dim})};
  }
  LinearParams linear(DType x, DType weight, std::int64_t tokens, std::int64_t in = 256) {
    return {.x = there(x, {tokens, in}), .weight = there(weight, {128, in}), .out = there(x, {tokens, 128})};
  }

  const Backend backend_ = lockstep_backend(GetParam());
  Dispatcher d_{backend_};

 private:
  struct alignas(16) Chunk {
    char bytes[16];
  };
  std::vector<std::vector<Chunk>> memory_;
};

template <class P>
std::string selected(Dispatcher& d, const P& params, const Selection& selection = {}) {
  std::string refusals;
  for (const Explained& e : d.explain(params, selection)) {
    if (e.selected) return e.kernel;
    refusals += e.kernel + ": " + e.reason + "\n";
  }
  return refusals;
}

bool says(const std::string& refusals, const char* what) { return refusals.find(what) != std::string::npos; }

// bf16 is taken by every architecture: it is computed in f32 and rounded in integers.
TEST_P(RocmPlans, TheRowThatServes) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const std::int64_t tokens : {1, 64})
      EXPECT_EQ(selected(d_, attention(dtype, 128, tokens)), "rocm::attention_f32");
    EXPECT_EQ(selected(d_, attention(dtype, 256, 64)), "rocm::attention_f32");
    EXPECT_EQ(selected(d_, linear(dtype, dtype, 4)), "rocm::linear_gemv");
    EXPECT_EQ(selected(d_, linear(dtype, dtype, 5)), "rocm::linear_dequant_gemv");
    EXPECT_EQ(selected(d_, linear(dtype, dtype, 17)), "rocm::linear_dequant_gemm");
    EXPECT_EQ(selected(d_, linear(dtype, DType::q4_0, 1)), "rocm::linear_dequant_gemv");
    EXPECT_EQ(selected(d_, linear(dtype, DType::q4_0, 17)), "rocm::linear_dequant_gemm");
    EXPECT_EQ(selected(d_, linear(dtype, dtype, 1), {.families = kVanilla}), "rocm::linear_dequant_unfused");
    LinearParams normed = linear(dtype, dtype, 17);
    normed.prologue.norm = NormKind::rms;
    normed.prologue.norm_weight = there(DType::f32, {256});
    EXPECT_EQ(selected(d_, normed), "rocm::linear_products");
    const RmsNormParams norm{
        .x = there(dtype, {4, 64}), .weight = there(DType::f32, {64}), .out = there(dtype, {4, 64})};
    EXPECT_EQ(selected(d_, norm), "rocm::rms_norm_plain");
  }
}

// What the specification has of every accelerator, low-bit weights, keys and values too.
TEST_P(RocmPlans, EverySpecifiedOperatorHasARow) {
  for (const Op op : {Op::attention, Op::append_kv, Op::rope, Op::rms_norm, Op::layer_norm, Op::softmax,
                      Op::activation, Op::linear, Op::qkv_linear, Op::gated_ffn}) {
    const auto rows = d_.kernels(op);
    EXPECT_TRUE(std::ranges::any_of(rows, [](const Kernel* k) {
      return (k->families & (kFused | kLibrary)) != 0;
    })) << op_name(op);
  }
}

TEST_P(RocmPlans, Refusals) {
  EXPECT_TRUE(says(selected(d_, attention(DType::f16, 264, 1)), "head_dim 264: this kernel takes up to 256"));
  // Inputs of so many features exceed a block's shared memory.
  const LinearParams wide = linear(DType::f16, DType::f16, 1, 16384);
  EXPECT_EQ(selected(d_, wide), "rocm::linear_dequant_gemm");
  std::string refusals;
  for (const Explained& e : d_.explain(wide)) refusals += e.kernel + ": " + e.reason + "\n";
  EXPECT_TRUE(says(refusals, "rocm::linear_gemv: 1 tokens of 16384 features: more than 63 KiB")) << refusals;
  EXPECT_TRUE(says(refusals, "rocm::linear_dequant_gemv: 16384 input features: more than 63 KiB"))
      << refusals;
  AttentionParams elsewhere = attention(DType::f16, 64, 1);
  elsewhere.k.device.index = 1;
  EXPECT_THROW(d_.explain(elsewhere), Error) << "operands of two devices";
}

TEST_P(RocmPlans, ADeviceOfLessSharedMemory) {
  const Backend less = lockstep_backend(GetParam(), 32 << 10);
  Dispatcher d(less);
  EXPECT_EQ(selected(d, attention(DType::f16, 64, 1)), "rocm::attention_f32");
  EXPECT_TRUE(
      says(selected(d, attention(DType::f16, 256, 1)),
           (std::string(GetParam()) + ": this kernel needs 49 KiB of shared memory a block, which may "
                                      "have 31")
               .c_str()));
  EXPECT_EQ(selected(d, linear(DType::f16, DType::q4_0, 1)), "rocm::linear_dequant_gemm");
}

TEST_P(RocmPlans, Launches) {
  std::vector<lockstep::Recorded> launches;
  const auto run = [&](const auto& params) {
    launches.clear();
    lockstep::recorded = &launches;
    d_.run(params);
    lockstep::recorded = nullptr;
    for (const lockstep::Recorded& l : launches) {
      EXPECT_EQ(l.block.x * l.block.y % cuda::kWarp, 0u) << "whole waves";
      EXPECT_LE(l.shared_bytes, cuda::kMostShared);
    }
    return launches.size();
  };
  using Shape = cuda::attention::F32Shape;
  // Decode: two sequences of two K/V heads are four units, whose keys are cut for all compute units; then their parts are combined.
  ASSERT_EQ(run(attention(DType::f16, 64, 1)), 2u);
  EXPECT_EQ(launches[0].grid.x, 4u + kComputeUnits * Shape::kBlocksPerSm);
  EXPECT_EQ(launches[0].block.x, 128u);
  EXPECT_EQ(launches[0].shared_bytes, (16 * 64 + 32 * 65) * sizeof(float))
      << "keys' place is values' in turn";
  EXPECT_EQ(launches[1].grid.x, 4u);
  EXPECT_EQ(launches[1].grid.y, unsigned{Shape::kRows});
  // A layer of few tokens: one launch, of no more blocks than run at once; of many: one of tiles.
  ASSERT_EQ(run(linear(DType::f16, DType::f16, 2)), 1u);
  EXPECT_EQ(launches[0].grid.x, 128u / 4) << "a row of the weight a wave";
  EXPECT_EQ(launches[0].block.x, 256u);
  EXPECT_EQ(launches[0].shared_bytes, 2 * 256 * sizeof(float));
  ASSERT_EQ(run(linear(DType::f16, DType::q4_0, 130)), 1u);
  EXPECT_EQ(launches[0].grid.x, 2u);
  EXPECT_EQ(launches[0].grid.y, 3u);
  // A gated FFN: two launches for few tokens, whose only memory is what lies between; four for many.
  const auto ffn = [&](std::int64_t tokens) {
    GatedFfnParams p{.x = there(DType::f16, {tokens, 64}),
                     .gate_weight = there(DType::f16, {96, 64}),
                     .up_weight = there(DType::f16, {96, 64}),
                     .down_weight = there(DType::f16, {64, 96}),
                     .out = there(DType::f16, {tokens, 64})};
    return p;
  };
  EXPECT_EQ(run(ffn(3)), 2u);
  EXPECT_EQ(d_.plan(ffn(3))->workspace_bytes(), 3 * 96 * 2u);
  EXPECT_EQ(run(ffn(20)), 4u) << "two products, their activation, a product";
}

INSTANTIATE_TEST_SUITE_P(Architectures, RocmPlans, testing::Values("gfx906", "gfx90a"));

}  // namespace
}  // namespace kf
