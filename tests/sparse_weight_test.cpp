// Sparse weights, what cases cannot say of them: what is kept, what is refused, that a wrong mask leads nowhere, and that
// masks go where their weights go.

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "block_graph.h"
#include "core/sparse.h"
#include "graph/reflect.h"
#include "graph/sample_data.h"
#include "kf/sparsify.h"
#include "linear_calls.h"

namespace kf::testing {
namespace {

using cases::Maker;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> dense_of(const SparseWeight& w, std::int64_t in) {
  const Tensor dense(DType::f32, {w.mask.view().dim(0), in});
  densify(w.values, {}, w.sparsity(), dense);
  return {dense.as<float>(), dense.as<float>() + dense.view().numel()};
}

TEST(Sparsify, KeepsTheLargestOfEveryGroup) {
  const Tensor x(DType::f32, {2, 8});
  const float values[] = {1, -4, 3, 2, 0, 0, kNan, 0, 5, 5, 5, 5, -1, 0, 0.5f, -2};
  std::memcpy(x.view().data, values, sizeof values);
  const SparseWeight w = sparsify(x, 2, 4);
  EXPECT_EQ(w.mask.as<std::uint8_t>()[0], 0b01010110);  // columns 1, 2 and 4, 6
  EXPECT_EQ(w.mask.as<std::uint8_t>()[1], 0b10010011);  // among equals the first
  const std::vector<float> back = dense_of(w, 8);
  const std::vector<float> expected = {0, -4, 3, 0, 0, 0, kNan, 0, 5, 5, 0, 0, -1, 0, 0, -2};
  EXPECT_EQ(std::memcmp(back.data(), expected.data(), sizeof values), 0);
}

TEST(Sparsify, UnstructuredKeepsWhatIsNotZeroOrTheShareAskedFor) {
  const Tensor x(DType::f32, {3, 5});
  const float values[] = {1, 0, -3, 0, 2, 0, 0, 0, 0, 0, -0.0f, 2, 2, 9, 1e-42f};
  std::memcpy(x.view().data, values, sizeof values);
  const SparseWeight all = sparsify_unstructured(x);
  EXPECT_EQ(all.values.view().numel(), 7);
  const auto* offsets = all.offsets.as<std::int64_t>();
  EXPECT_EQ(std::vector<std::int64_t>(offsets, offsets + 4), (std::vector<std::int64_t>{0, 3, 3, 7}));
  const std::vector<float> back = dense_of(all, 5);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(back[static_cast<std::size_t>(i)], values[i]);
  const SparseWeight few = sparsify_unstructured(x, 0.8);  // three of fifteen stay: 9, -3 and the first 2
  EXPECT_EQ(dense_of(few, 5), (std::vector<float>{0, 0, -3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0}));
  EXPECT_EQ(sparsify_unstructured(x, 1.0).values.view().numel(), 0);
}

TEST(Sparsify, RefusesWhatDoesNotFit) {
  Maker m("sparsify");
  const TensorView x = m.normal(DType::f32, {4, 64});
  for (const auto& [n, of] :
       {std::pair(0, 4), std::pair(4, 4), std::pair(1, 3), std::pair(1, 64), std::pair(-1, 4)})
    EXPECT_THROW(sparsify(x, n, of), Error) << n << ":" << of;
  EXPECT_THROW(sparsify(x.slice(1, 0, 62), 2, 4), Error);
  EXPECT_THROW(sparsify(m.filled(DType::i32, {2, 4}, 1), 2, 4), Error);
  for (const double share : {-0.1, 1.1, std::nan("")}) EXPECT_THROW(sparsify_unstructured(x, share), Error);
}

// A call of linear over a sparse weight, and what comes of changing it.
struct Call {
  Maker m{"sparse call"};
  SparseWeight w;
  LinearParams p;

  explicit Call(bool structured, std::int64_t num_tokens = 2, std::int64_t out = 40, std::int64_t in = 72)
      : w(structured ? sparsify(m.normal(DType::f32, {out, in}), 2, 4)
                     : sparsify_unstructured(m.normal(DType::f32, {out, in}), 0.75)) {
    p.x = m.normal(DType::f32, {num_tokens, in});
    p.weight = w.values;
    p.weight_sparsity = w.sparsity();
    p.out = m.filled(DType::f32, {num_tokens, out}, kUntouched);
  }
};

TEST(SparseWeight, WhatDoesNotFitIsRefusedByName) {
  const auto refused = [](bool structured, const std::string& operand, const std::string& expected,
                          auto change) {
    Call c(structured);
    change(c);
    expect_refused(c.p, operand, expected);
  };
  const std::string n_of_m = "n of m neighbours, m 2, 4, 8, 16 or 32 and 1 <= n < m";
  refused(true, "weight_n", n_of_m, [](Call& c) { c.p.weight_sparsity.n = 4; });
  refused(true, "weight_n", n_of_m, [](Call& c) { c.p.weight_sparsity.m = 6; });
  refused(true, "weight_n", n_of_m, [](Call& c) { c.p.weight_sparsity.m = 0; });
  refused(true, "weight", "columns that are a multiple of m, 32",
          [](Call& c) { c.p.weight_sparsity.m = 32; });
  refused(true, "weight", "shape [40, 18], the values of 72 columns, 1 of every 4",
          [](Call& c) { c.p.weight_sparsity.n = 1; });
  refused(true, "weight", "shape [40, 36]", [](Call& c) { c.p.weight = c.p.weight.slice(1, 0, 35); });
  refused(true, "weight_mask", "shape [out, 9]",
          [](Call& c) { c.p.weight_sparsity.mask = c.p.weight_sparsity.mask.slice(1, 0, 8); });
  refused(true, "weight_mask", "u8", [](Call& c) { c.p.weight_sparsity.mask.dtype = DType::i8; });
  refused(true, "weight_offsets", "none, since weight is 2:4", [](Call& c) {
    c.p.weight_sparsity.offsets = c.m.integers(DType::i64, {0, 1});
  });
  refused(true, "weight_n", "0, since weight has no mask", [](Call& c) { c.p.weight_sparsity.mask = {}; });
  refused(true, "weight", "values of f32, f16, bf16, int4, i8, fp8_e4m3 or fp8_e5m2",
          [](Call& c) { c.p.weight.dtype = DType::i32; });
  refused(true, "weight_scales", "scales, since weight is i8", [](Call& c) { c.p.weight.dtype = DType::i8; });
  refused(true, "out", "40 (the weight's rows)", [](Call& c) { c.p.out = c.p.out.slice(1, 0, 39); });
  refused(false, "weight_offsets", "offsets of the rows, since the weight is unstructured",
          [](Call& c) { c.p.weight_sparsity.offsets = {}; });
  refused(false, "weight_offsets", "i64", [](Call& c) { c.p.weight_sparsity.offsets.dtype = DType::f32; });
  refused(false, "weight_offsets", "shape [41]",
          [](Call& c) { c.p.weight_sparsity.offsets = c.p.weight_sparsity.offsets.slice(0, 0, 40); });
  refused(false, "weight", "one dimension of values", [](Call& c) {
    c.p.weight = c.p.weight.reshape({1, c.p.weight.dim(0)});
  });
  // The values in tables, which are read at every call.
  const std::string ascend = "offsets that ascend from 0 to 720, the number of values";
  const auto offset = [](Call& c, int i) -> std::int64_t& { return c.w.offsets.as<std::int64_t>()[i]; };
  refused(false, "weight_offsets", ascend, [&](Call& c) { offset(c, 0) = -1; });
  refused(false, "weight_offsets", ascend, [&](Call& c) { offset(c, 7) = offset(c, 8) + 1; });
  refused(false, "weight_offsets", ascend, [&](Call& c) { offset(c, 40) += 5; });
  refused(false, "weight_offsets", ascend, [&](Call& c) { offset(c, 20) = std::int64_t{1} << 60; });
}

TEST(SparseWeight, AMaskThatBreaksItsPatternIsFoundByTheCheck) {
  const auto broken = [](bool structured, const std::string& expected, auto change) {
    Call c(structured, 2, 40, 76);
    check_sparse(c.p.weight, c.p.weight_sparsity, 76);
    change(c.w.mask.as<std::uint8_t>());
    try {
      check_sparse(c.p.weight, c.p.weight_sparsity, 76);
      FAIL() << expected;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(expected), std::string::npos) << e.what();
    }
  };
  broken(true, "2 bits for every 4 columns, so from column 8 on, in row 3",
         [](std::uint8_t* mask) { mask[3 * 10 + 1] |= 0x0F; });
  broken(true, "2 bits for every 4 columns, so from column 72 on, in row 39",
         [](std::uint8_t* mask) { mask[399] = 0; });
  broken(true, "no bit behind column 75 in row 5", [](std::uint8_t* mask) { mask[59] |= 0x80; });
  broken(false, "as offsets say, in row 0", [](std::uint8_t* mask) { mask[0] ^= 1; });
}

// Whatever the mask, no kernel reads outside the operands: the sanitizers' build sees it, and here nothing crashes though
// the values end where memory does.
TEST(SparseWeight, AWrongMaskStaysWithinTheValues) {
  for (const bool structured : {true, false})
    for (const std::int64_t num_tokens : {1, 3, 40})
      for (const unsigned families : {unsigned{kFused}, unsigned{kVanilla}, unsigned{kReference}}) {
        Call c(structured, num_tokens);
        std::memset(c.w.mask.view().data, 0xFF, c.w.mask.view().nbytes());
        default_dispatcher().run(c.p, {.families = families, .kernel = {}});
        if (families == kReference) continue;
        std::memset(c.w.mask.view().data, 0, c.w.mask.view().nbytes());
        default_dispatcher().run(c.p, {.families = families, .kernel = {}});
        for (std::int64_t i = 0; i < c.p.out.numel(); ++i) ASSERT_EQ(c.p.out.as<float>()[i], 0.0f);
      }
}

// With many tokens what is not stored is not multiplied, and yet an infinity or NaN of x meets zeros there.
TEST(SparseWeight, WhatIsNotFiniteMeetsTheZeros) {
  for (const bool structured : {true, false})
    for (const std::int64_t num_tokens : {3, 20, 70}) {
      Call c(structured, num_tokens, 40, 712);
      const auto set = [&](std::int64_t token, std::int64_t k, float value) {
        c.p.x.as<float>()[token * 712 + k] = value;
      };
      set(0, 5, std::numeric_limits<float>::infinity());
      set(num_tokens - 1, 711, kNan);
      default_dispatcher().run(c.p);
      LinearParams expected = c.p;
      expected.out = c.m.filled(DType::f32, {num_tokens, 40}, kUntouched);
      default_dispatcher().run(expected, {.families = kReference});
      int infinite = 0;
      for (std::int64_t i = 0; i < c.p.out.numel(); ++i) {
        const float got = c.p.out.as<float>()[i], want = expected.out.as<float>()[i];
        infinite += std::isinf(want);
        if (std::isfinite(want))
          ASSERT_NEAR(got, want, 1e-4f) << i;
        else
          ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want)
              << i << ": " << got << ", not " << want;
      }
      EXPECT_GT(infinite, 0);
      EXPECT_LT(infinite, 40);
    }
}

// Panels of other widths, other numbers of vectors, other passes.
TEST(SparseWeight, ATokensBitsAreTheSameInEveryBatch) {
  for (const bool structured : {true, false}) {
    Call c(structured, 700, 40, 712);
    const Selection fixed{.families = kFused, .kernel = {}, .batch_invariant = true};
    default_dispatcher().run(c.p, fixed);
    for (const std::int64_t num_tokens : {1, 9, 17, 33, 64, 65, 130}) {
      LinearParams few = c.p;
      few.x = c.p.x.slice(0, 0, num_tokens);
      few.out = c.m.filled(DType::f32, {num_tokens, 40}, kUntouched);
      default_dispatcher().run(few, fixed);
      EXPECT_EQ(std::memcmp(few.out.data, c.p.out.data, few.out.nbytes()), 0) << num_tokens;
    }
  }
}

TEST(SparseWeight, CostIsThatOfTheValues) {
  const Call c(true);
  const Cost cost = op_info(Op::linear).cost(&c.p);
  EXPECT_EQ(cost.bytes, 2 * 72 * 4 + 40 * 36 * 4 + 40 * 9 + 2 * 40 * 4);
  EXPECT_EQ(cost.flops, 2.0 * 2 * 40 * 36);
}

TEST(SparseWeight, SameBitsWhateverTheThreads) {
  for (const std::int64_t num_tokens : {1, 3, 50}) {
    const Call c(false, num_tokens, 200, 256);
    expect_same_bits_whatever_the_threads(c.p);
  }
}

// n of m by layer; those that are not named are unstructured.
LayerWeight sparse_layer(Maker& make, const std::string& name, std::int64_t out, std::int64_t in) {
  static const std::map<std::string, std::pair<std::int64_t, std::int64_t>> kPatterns = {
      {"q", {2, 4}}, {"v", {4, 8}}, {"gate", {1, 4}}, {"down", {2, 4}}, {"head", {1, 2}}};
  const auto pattern = kPatterns.find(name);
  const TensorView dense = make.normal(DType::f32, {out, in}, 0.3f);
  const SparseWeight w = pattern == kPatterns.end()
                             ? sparsify_unstructured(dense, 0.7)
                             : sparsify(dense, pattern->second.first, pattern->second.second);
  for (const Tensor& t : {w.values, w.mask, w.offsets}) make.storage().push_back(t);
  LayerWeight layer{{}, {{"weight", w.values}, {"weight_mask", w.mask}}};
  if (pattern == kPatterns.end()) {
    layer.operands.emplace_back("weight_offsets", w.offsets);
  } else {
    layer.params.weight_sparsity.n = pattern->second.first;
    layer.params.weight_sparsity.m = pattern->second.second;
  }
  return layer;
}

TEST(SparseWeight, RulesPassMasksOffsetsAndPatternsOn) {
  const Graph after = BlockGraph(sparse_layer).fused();
  for (const Node& n : after.nodes())
    if (n.op() == Op::qkv_linear) {
      const auto& p = n.params.as<QkvLinearParams>();
      EXPECT_EQ(p.q_weight_sparsity.m, 4);
      EXPECT_EQ(p.k_weight_sparsity.m, 0);
      EXPECT_TRUE(p.k_weight_sparsity.offsets.present());
      EXPECT_EQ(p.v_weight_sparsity.n, 4);
    }
}

TEST(SparseWeight, GeneratedDataFitsThePatterns) {
  const BlockGraph b(sparse_layer, true);
  const auto data = sample_inputs(b.graph);
  const auto view = [&](const std::string& name) { return data.at(name).view; };
  check_sparse(view("q"), {view("q_mask"), {}, 2, 4}, 64);
  check_sparse(view("v"), {view("v_mask"), {}, 4, 8}, 64);
  check_sparse(view("k"), {view("k_mask"), view("k_offsets"), 0, 0}, 64);
  check_sparse(view("up"), {view("up_mask"), view("up_offsets"), 0, 0}, 64);
}

}  // namespace
}  // namespace kf::testing
