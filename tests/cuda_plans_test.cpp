// What the CUDA backend's rows say of calls, without a device: a stand-in has a Hopper's capabilities. Planning and running need
// the device; refusals and choices do not.

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "accelerators.h"
#include "case.h"
#include "kf/families.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

// Of a multiprocessor of the stand-in, and of one of a device that has less.
constexpr std::size_t kHoppersShared = 228 << 10, kLessShared = 100 << 10;

// The backend where it is compiled in, over a device that is not here.
template <std::size_t kSharedBytes = kHoppersShared>
const Backend* stand_in() {
  static const std::unique_ptr<Backend> b = [] {
    std::unique_ptr<Backend> made;
    for (const Backend* real : all_backends()) {
      if (real->name != "cuda") continue;
      made = std::make_unique<Backend>(*real);
      made->available = [] { return Support::yes(); };
      made->capabilities = [](int index) {
        DeviceCaps c;
        c.device = {DeviceType::cuda, index};
        c.name = "a stand-in, 132 multiprocessors";
        c.isa = "sm_90";
        c.l1_bytes = kSharedBytes;
        c.l2_bytes = std::size_t{50} << 20;
        c.memory_bytes = std::size_t{80} << 30;
        return c;
      };
    }
    return made;
  }();
  return b.get();
}

// As if its operands lay on the device; nothing reads them.
void put_there(const cases::Case& c, cases::Instance& i) {
  for (const Slot& s : slots_of(c.op, i.params.data()))
    if (s.tensor->present()) s.tensor->device = {DeviceType::cuda, 0};
}

std::string selected(Dispatcher& d, const AnyParams& params) {
  std::string refusals;
  for (const Explained& e : d.explain(params.op(), params.data())) {
    if (e.selected) return e.kernel;
    refusals += e.kernel + ": " + e.reason + "\n";
  }
  return refusals;
}

TEST(CudaPlans, EveryRowAnswersItsOpsCases) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher d(*stand_in());
  std::set<std::string> accepting;
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || d.kernels(c.op).empty() || seen[c.op]++ % 5 != 0)
      continue;  // making data is what takes time
    cases::Instance i = cases::instantiate(c);
    put_there(c, i);
    for (const Explained& e : d.explain(c.op, i.params.data())) {
      EXPECT_EQ(e.supported && e.allowed, e.reason.empty()) << c.name << ": " << e.kernel << ": " << e.reason;
      if (e.supported) accepting.insert(e.kernel);
    }
  }
  for (const Kernel* k : d.kernels()) {
    // Those over libraries may be refused here.
    bool over_a_library = false;
    for (const char* part : {"cublaslt", "products", "cudnn", "_unfused"})
      over_a_library = over_a_library || k->name.find(part) != std::string::npos;
    EXPECT_TRUE(over_a_library || accepting.contains(k->name)) << k->name << " accepts no case";
  }
}

TensorView there(DType dtype, std::initializer_list<std::int64_t> shape) {
  return TensorView::contiguous(reinterpret_cast<void*>(std::uintptr_t{1} << 20), dtype, shape,
                                {DeviceType::cuda, 0});
}

AttentionParams attention(DType dtype, std::int64_t head_dim, std::int64_t tokens = 64) {
  return {.q = there(dtype, {2, tokens, 8, head_dim}),
          .k = there(dtype, {2, 128, 2, head_dim}),
          .v = there(dtype, {2, 128, 2, head_dim}),
          .out = there(dtype, {2, tokens, 8, head_dim})};
}

LinearParams linear(DType x, DType weight, std::int64_t tokens, std::int64_t in = 256) {
  return {.x = there(x, {tokens, in}), .weight = there(weight, {512, in}), .out = there(x, {tokens, 512})};
}

TEST(CudaPlans, TheRowThatServes) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher d(*stand_in());
  EXPECT_EQ(selected(d, attention(DType::bf16, 128)), "cuda::attention_flash2");
  EXPECT_EQ(selected(d, attention(DType::bf16, 128, 1)), "cuda::attention_flash2");
  EXPECT_EQ(selected(d, attention(DType::f32, 128)), "cuda::attention_f32");
  EXPECT_EQ(selected(d, attention(DType::f16, 100)), "cuda::attention_f32") << "no rows of 16-byte chunks";
  EXPECT_NE(selected(d, attention(DType::bf16, 264)).find("head_dim 264: this kernel takes up to 256"),
            std::string::npos);
  EXPECT_EQ(selected(d, linear(DType::bf16, DType::bf16, 1)), "cuda::linear_gemv");
  EXPECT_EQ(selected(d, linear(DType::bf16, DType::q4_0, 1)), "cuda::linear_dequant_gemv");
  EXPECT_EQ(selected(d, linear(DType::bf16, DType::q4_0, 64)), "cuda::linear_dequant_gemm");
  const ActivationParams a{.x = there(DType::f16, {4, 64}), .out = there(DType::f16, {4, 64})};
  EXPECT_EQ(selected(d, a), "cuda::activation_plain");
  RmsNormParams norm{.x = there(DType::bf16, {4, 64}),
                     .weight = there(DType::f32, {64}),
                     .residual = there(DType::bf16, {4, 64}),
                     .out = there(DType::bf16, {4, 64}),
                     .residual_out = there(DType::bf16, {4, 64})};
  EXPECT_EQ(selected(d, norm), "cuda::rms_norm_residual");
  norm.weight.device.index = 1;
  EXPECT_THROW(d.explain(norm), Error) << "operands of two devices";
}

// A row that a launch would fail in refuses when it is planned, and says how much it needs; another serves.
TEST(CudaPlans, RowsRefuseADeviceOfLessSharedMemory) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher hopper(*stand_in()), less(*stand_in<kLessShared>());
  const auto reason = [](Dispatcher& d, const AnyParams& p, const std::string& kernel) {
    for (const Explained& e : d.explain(p.op(), p.data()))
      if (e.kernel == kernel) return e.supported ? "" : e.reason;
    return "no row " + kernel;
  };
  const AttentionParams tiles = attention(DType::bf16, 256), decode = attention(DType::bf16, 128, 1);
  const LinearParams small = linear(DType::bf16, DType::bf16, 4, 8192),
                     decoded = linear(DType::bf16, DType::q4_0, 4);
  const struct {
    AnyParams params;
    std::string kernel, instead;
  } calls[] = {{tiles, "cuda::attention_flash2", "cuda::attention_f32"},
               {decode, "cuda::attention_flash2", "cuda::attention_f32"},
               {small, "cuda::linear_gemv", ""},
               {decoded, "cuda::linear_dequant_gemv", "cuda::linear_dequant_gemm"}};
  for (const auto& call : calls) {
    EXPECT_EQ(reason(hopper, call.params, call.kernel), "") << call.kernel;
    const std::string refused = reason(less, call.params, call.kernel);
    EXPECT_NE(refused.find("KiB of shared memory a block, which may have 99"), std::string::npos)
        << call.kernel << ": " << refused;
    if (!call.instead.empty()) EXPECT_EQ(selected(less, call.params), call.instead);
  }
  EXPECT_EQ(selected(less, attention(DType::bf16, 64)), "cuda::attention_flash2") << "a tile of 48 KiB";
  EXPECT_EQ(selected(less, linear(DType::bf16, DType::bf16, 1)), "cuda::linear_gemv");
}

TEST_F(AcceleratorsHere, Flash2RefusesAnAddressThatItCannotRead) {
  for (const Backend* b : usable_) {
    if (b->name != "cuda") continue;
    Dispatcher d(*b);
    AttentionParams p = attention(DType::bf16, 128);
    const auto plan = d.plan(p);
    ASSERT_EQ(plan->kernel().name, "cuda::attention_flash2");
    p.k.data = p.k.as<char>() + 8;
    try {
      plan->run(&p, {});
      FAIL() << "expected a refusal";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      EXPECT_NE(
          std::string(e.what()).find("k: attention_flash2 expected an address that is a multiple of 16"),
          std::string::npos)
          << e.what();
    }
  }
}

TEST(CudaPlans, Flash3IsCudnns) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher d(*stand_in());
  const Selection flash3{.families = kCustom | kFlash3};
  const auto reason = [&](const AttentionParams& p) {
    for (const Explained& e : d.explain(p, flash3))
      if (e.kernel == "cuda::attention_cudnn") return e.reason;
    return std::string("no such row");
  };
  const std::string any = reason(attention(DType::bf16, 128));
  EXPECT_EQ(any.find("cuDNN"), any.empty() ? std::string::npos : 0u)
      << "it serves, or says what of cuDNN is missing: " << any;
  AttentionParams p = attention(DType::bf16, 128);
  EXPECT_THROW(d.run(p, {.families = kReference}), Error);
}

}  // namespace
}  // namespace kf
