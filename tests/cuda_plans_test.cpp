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
    for (const char* part : {"cublaslt", "cusparselt", "products", "cudnn", "_unfused"})
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
  norm.weight.dtype = DType::bf16;
  EXPECT_EQ(selected(d, norm), "cuda::rms_norm_residual_dense");
  norm.weight.device.index = 1;
  EXPECT_THROW(d.explain(norm), Error) << "operands of two devices";
}

// Dense rows say of each call that they leave to the next row why.
TEST(CudaPlans, DenseNormsSayWhatTheyLeave) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher d(*stand_in());
  const auto reason = [&](const AnyParams& p, const std::string& kernel) {
    for (const Explained& e : d.explain(p.op(), p.data()))
      if (e.kernel == kernel) return e.supported ? "" : e.reason;
    return "no row " + kernel;
  };
  const auto rms = [](std::int64_t n) {
    return RmsNormParams{.x = there(DType::bf16, {2, 3, n}),
                         .weight = there(DType::bf16, {n}),
                         .residual = there(DType::bf16, {2, 3, n}),
                         .out = there(DType::bf16, {2, 3, n}),
                         .residual_out = there(DType::bf16, {2, 3, n})};
  };
  const auto of = [&](const RmsNormParams& p) { return reason(p, "cuda::rms_norm_residual_dense"); };
  EXPECT_EQ(of(rms(64)), "");
  EXPECT_EQ(of(rms(16384)), "");
  EXPECT_EQ(of(rms(16392)), "rows of 16392 elements: this kernel takes up to 16384");
  EXPECT_EQ(of(rms(68)), "rows of 68 elements: this kernel takes multiples of 16 bytes, 8 elements");
  RmsNormParams p = rms(64);
  p.residual = {};
  EXPECT_EQ(of(p), "no residual: this kernel adds one");
  EXPECT_EQ(selected(d, p), "cuda::rms_norm_dense");
  EXPECT_EQ(reason(rms(64), "cuda::rms_norm_dense"), "residual given: this kernel takes none");
  p.weight.dtype = DType::f32;
  EXPECT_EQ(selected(d, p), "cuda::rms_norm_plain");
  p = rms(64);
  p.weight.dtype = DType::f32;
  EXPECT_EQ(of(p), "weight f32 with x bf16: this kernel takes one dtype");
  p = rms(64);
  p.residual.strides[0] = 4 * 64;
  EXPECT_EQ(of(p), "residual: rows of unequal distance: this kernel takes even ones");
  p = rms(64);
  p.out.strides[0] = 3 * 68;
  p.out.strides[1] = 68;
  EXPECT_EQ(of(p), "out: rows 68 elements apart: this kernel takes multiples of 16 bytes");
  LayerNormParams layer{.x = there(DType::f16, {4, 64}),
                        .weight = there(DType::f16, {64}),
                        .bias = there(DType::f32, {64}),
                        .residual = there(DType::f16, {4, 64}),
                        .out = there(DType::f16, {4, 64})};
  EXPECT_EQ(reason(layer, "cuda::layer_norm_residual_dense"),
            "bias f32 with x f16: this kernel takes one dtype");
  layer.bias.dtype = DType::f16;
  EXPECT_EQ(selected(d, layer), "cuda::layer_norm_residual_dense");
  layer.residual = {};
  EXPECT_EQ(selected(d, layer), "cuda::layer_norm_dense");
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

TEST(CudaPlans, SparseProductsSayWhatTheyLeave) {
  if (stand_in() == nullptr) GTEST_SKIP() << "built without the CUDA backend";
  Dispatcher d(*stand_in());
  const auto reason = [&](const LinearParams& p) {
    for (const Explained& e : d.explain(p))
      if (e.kernel == "cuda::linear_cusparselt") return e.reason;
    return std::string("no such row");
  };
  const auto sparse = [](DType dtype, std::int64_t tokens, std::int64_t n = 2, std::int64_t m = 4) {
    LinearParams p = linear(dtype, dtype, tokens);
    p.weight = there(dtype, {512, 256 * n / m});
    p.weight_sparsity = {.mask = there(DType::u8, {512, 32}), .n = n, .m = m};
    return p;
  };
  const std::string least = reason(sparse(DType::bf16, 64));
  if (least.starts_with("cuSPARSELt: built without")) GTEST_SKIP() << least;
  EXPECT_EQ(least, "a weight that may change: cuSPARSELt's form of it is made once");
  EXPECT_EQ(reason(linear(DType::bf16, DType::bf16, 64)), "a dense weight: cuSPARSELt takes 2:4 ones");
  EXPECT_EQ(reason(sparse(DType::f16, 64, 4, 8)), "weight 4:8: cuSPARSELt takes 2:4 ones");
  EXPECT_EQ(reason(sparse(DType::f32, 64)), "x f32, weight f32: this row takes f16 or bf16 throughout");
  EXPECT_EQ(reason(sparse(DType::bf16, 16)), "16 tokens: rows that decode the weight are faster up to 16");
  EXPECT_EQ(reason(sparse(DType::bf16, 40)), "40 tokens: cuSPARSELt takes multiples of 16");
  LinearParams p = sparse(DType::bf16, 64);
  p.bias = there(DType::bf16, {512});
  EXPECT_EQ(reason(p), "a bias or an activation: this row adds a residual alone");
  p = sparse(DType::bf16, 64);
  p.x.strides[0] = 260;
  EXPECT_EQ(reason(p), "x: rows 260 apart: cuSPARSELt takes rows in chunks of 16 bytes");
  for (const Backend* b : all_backends())
    if (b->name == "cuda" && b->available()) return;  // it would read the stand-in's weight
  PackCache packs;
  const LinearParams constant = sparse(DType::bf16, 64);
  const auto plan = [&] { return d.plan(constant, {.kernel = "cuda::linear_cusparselt"}, &packs); };
  try {
    plan();
    FAIL() << "expected a refusal: there is no device, or no library";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("cuSPARSELt"), std::string::npos) << e.what();
  }
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
