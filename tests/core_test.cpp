// Tensors, dtypes, errors, reflection.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "core/block_formats.h"
#include "core/log.h"
#include "core/operands.h"
#include "kf/kf.h"

namespace kf {
namespace {

// Objects of a program may use ops while they are initialised.
const std::string kEarly = op_name(Op::sample);

TEST(Op, TableIsThereBeforeMain) { EXPECT_EQ(kEarly, "sample"); }

TEST(DType, NamesAreUniqueAndFoundAgain) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DType t = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(dtype_name(t)), t);
  }
  EXPECT_FALSE(dtype_from_name("f64").has_value());
}

TEST(Tensor, ContiguousViewCountsElementsAndBytes) {
  const Tensor t(DType::f16, {2, 3, 4});
  EXPECT_EQ(t.view().numel(), 24);
  EXPECT_EQ(t.view().nbytes(), 48u);
  EXPECT_TRUE(t.view().is_contiguous());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.view().data) % 64, 0u);
}

TEST(Tensor, BlockFormatsCountBlocks) {
  const Tensor t(DType::q4_1, {3, 64});
  EXPECT_EQ(t.view().nbytes(), 3u * 2 * 20);
  EXPECT_EQ(static_cast<char*>(t.view().slice(0, 1, 2).data) - t.as<char>(), 40);
}

TEST(Tensor, SliceAndTransposeShareMemory) {
  const Tensor t(DType::f32, {4, 5});
  const TensorView s = t.view().slice(1, 2, 4);
  EXPECT_EQ(s.as<float>(), t.as<float>() + 2);
  EXPECT_FALSE(s.is_contiguous());
  const TensorView u = t.view().transpose(0, 1);
  EXPECT_EQ(u.dim(0), 5);
  EXPECT_EQ(u.stride(-1), 5);
  EXPECT_THROW(t.view().slice(1, 3, 6), Error);
  EXPECT_THROW(u.reshape({20}), Error);
  EXPECT_EQ(t.view().reshape({20}).rank, 1);
}

TEST(Tensor, BlocksAreNotCut) {
  const TensorView t = Tensor(DType::q8_0, {4, 96});
  EXPECT_EQ(static_cast<char*>(t.slice(1, 32, 64).data) - t.as<char>(), 34);
  EXPECT_NO_THROW(t.slice(0, 1, 3));
  EXPECT_THROW(t.slice(1, 16, 96), Error);
  EXPECT_THROW(t.slice(1, 0, 48), Error);
  EXPECT_THROW(t.transpose(0, 2), Error);
}

TEST(Tensor, CountsThatOverflowDoNotWrap) {
  TensorView t = TensorView::contiguous(nullptr, DType::f32, {1, 1});
  t.shape[0] = t.shape[1] = std::int64_t{1} << 40;
  t.strides[0] = t.strides[1] = 0;
  EXPECT_EQ(t.numel(), std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(t.nbytes(), std::numeric_limits<std::size_t>::max());
  EXPECT_THROW(TensorView::contiguous(nullptr, DType::f32, {1 << 20, std::int64_t{1} << 43}), Error);
}

TEST(Tensor, SizesThatOverflowAreRefused) {
  const std::int64_t huge = std::int64_t{1} << 40;
  EXPECT_THROW(Tensor(DType::f32, {huge, huge}), Error);
  EXPECT_THROW(Tensor(DType::f32, {-1}), Error);
  try {
    Tensor(DType::f32, {huge, 1 << 20});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::resource_exhausted);
    EXPECT_TRUE(e.is_retryable());
  }
}

TEST(Tensor, LargeMemoryBeginsAtAHugePage) {
  constexpr std::size_t kHuge = std::size_t{2} << 20;
  for (const std::size_t bytes : {kHuge, kHuge + 1, 5 * kHuge / 2, 33 * kHuge - 4096}) {
    const auto memory = allocate_host(bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.get()) % kHuge, 0) << bytes;
    std::memset(memory.get(), 1, bytes);
  }
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(allocate_host(100).get()) % 64, 0);
  EXPECT_THROW(allocate_host(std::numeric_limits<std::size_t>::max()), Error);
}

TEST(Tensor, EmptyAndScalarAreContiguous) {
  EXPECT_TRUE(Tensor(DType::f32, {0, 7}).view().is_contiguous());
  EXPECT_EQ(Tensor(DType::f32, {0, 7}).view().numel(), 0);
  EXPECT_EQ(Tensor(DType::f32, std::initializer_list<std::int64_t>{}).view().numel(), 1);
  EXPECT_FALSE(TensorView{}.present());
}

TEST(Op, TableIsInTheOrderOfTheEnumeration) {
  int i = 0;
  for (const OpInfo& info : all_ops()) {
    EXPECT_EQ(static_cast<int>(info.op), i++) << info.name;
    EXPECT_EQ(find_op(info.name), &info);
  }
  EXPECT_EQ(find_op("no_such_op"), nullptr);
}

TEST(Op, ParamsDescribeThemselves) {
  RmsNormParams p{.x = Tensor(DType::f32, {2, 8}), .weight = Tensor(DType::f32, {8})};
  const std::string text = describe(Op::rms_norm, &p);
  EXPECT_NE(text.find("x=f32[2, 8]"), std::string::npos) << text;
  EXPECT_EQ(text.find("residual"), std::string::npos) << text;
  EXPECT_EQ(slots_of(Op::rms_norm, &p).size(), 7u);
}

TEST(Op, PlanKeysDifferByLayoutAndAttributeNotByAddress) {
  const Tensor a(DType::f32, {2, 8}), b(DType::f32, {2, 8}), w(DType::f32, {8});
  auto key = [](const RmsNormParams& p) {
    std::string k;
    append_plan_key(Op::rms_norm, &p, k);
    return k;
  };
  EXPECT_EQ(key({.x = a, .weight = w}), key({.x = b, .weight = w}));
  EXPECT_NE(key({.x = a, .weight = w}), key({.x = a, .weight = w, .eps = 1e-3f}));
  EXPECT_NE(key({.x = a, .weight = w}), key({.x = a, .weight = w, .residual = b}));
  EXPECT_NE(key({.x = a, .weight = w}), key({.x = a.view().slice(1, 0, 4), .weight = w}));
}

TEST(Op, WhatChangesFromRunToRunIsNoPartOfThePlan) {
  const Tensor logits(DType::f32, {2, 8}), ids(DType::i32, {2});
  SampleParams a{.logits = logits, .ids = ids, .seed = 1, .step = 2}, b = a;
  b.seed = 3;
  b.step = 4;
  std::string key_a, key_b;
  append_plan_key(Op::sample, &a, key_a);
  append_plan_key(Op::sample, &b, key_b);
  EXPECT_EQ(key_a, key_b);
  EXPECT_EQ(describe(Op::sample, &a), describe(Op::sample, &b));
}

// ggml's rounding where values have a place on the scale; the nearest end, or 0, where they have none.
TEST(BlockFormats, NanAndInfinityAreDefined) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType format : {DType::q4_0, DType::q4_1, DType::q8_0}) {
    for (const float hostile : {kNan, INFINITY, -INFINITY, 1e-44f, -1e-44f}) {
      std::vector<float> values(32, 0.5f), back(32);
      values[3] = hostile;
      values[20] = -hostile;
      const Tensor blocks(format, {1, 32});
      quantize_blocks(format, values.data(), blocks.view().data, 32);
      dequantize_blocks(format, blocks.view().data, back.data(), 32);
      if (std::isfinite(hostile) || (std::isnan(hostile) && format != DType::q4_1))
        EXPECT_NEAR(back[0], 0.5f, 0.04f) << dtype_name(format) << " " << hostile;
    }
  }
}

TEST(Log, WarningsGoToStandardError) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  log_warning("something to know");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("something to know"), std::string::npos);
}

TEST(Op, AnyParamsIsAValue) {
  AnyParams a = RmsNormParams{.eps = 0.5f};
  AnyParams b = a;
  b.as<RmsNormParams>().eps = 0.25f;
  EXPECT_EQ(a.as<RmsNormParams>().eps, 0.5f);
}

// All elements of a view, as offsets from a pool's first.
std::set<std::int64_t> elements_of(const TensorView& t, const float* pool) {
  std::set<std::int64_t> offsets;
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    std::int64_t rest = i, offset = t.as<const float>() - pool;
    for (int d = t.rank - 1; d >= 0; --d) {
      offset += rest % t.shape[d] * t.strides[d];
      rest /= t.shape[d];
    }
    offsets.insert(offset);
  }
  return offsets;
}

bool meet(const TensorView& a, const TensorView& b, const float* pool) {
  const std::set<std::int64_t> of_a = elements_of(a, pool);
  for (const std::int64_t e : elements_of(b, pool))
    if (of_a.contains(e)) return true;
  return false;
}

// Never says apart of views that share an element, whatever their strides.
TEST(SharedMemory, FindsEveryCommonElement) {
  std::mt19937 random(7);
  std::vector<float> pool(4096);
  const auto draw = [&](int lo, int hi) { return std::uniform_int_distribution<int>(lo, hi)(random); };
  const auto view = [&] {
    TensorView t;
    t.dtype = DType::f32;
    t.rank = draw(1, 3);
    t.data = pool.data() + 2000 + draw(0, 60);
    for (int d = 0; d < t.rank; ++d) {
      t.shape[d] = draw(1, 4);
      t.strides[d] = draw(0, 9) == 0 ? -draw(1, 20) : draw(0, 20);
    }
    return t;
  };
  int apart = 0;
  for (int i = 0; i < 20000; ++i) {
    const TensorView a = view(), b = view();
    const bool said = share_memory(a, b);
    apart += !said;
    if (meet(a, b, pool.data())) ASSERT_TRUE(said) << to_string(a) << " and " << to_string(b);
  }
  EXPECT_GT(apart, 1000);
}

// Exact for slices of one tensor, however many heads each has.
TEST(SharedMemory, SlicesOfOneTensor) {
  std::mt19937 random(8);
  const Tensor merged = Tensor::zeros(DType::f32, {5, 24});
  const auto slice = [&] {
    const std::int64_t begin = std::uniform_int_distribution<int>(0, 22)(random);
    const std::int64_t end = std::uniform_int_distribution<int>(static_cast<int>(begin) + 1, 24)(random);
    TensorView t = TensorView(merged).slice(1, begin, end);
    if ((end - begin) % 2 == 0) {  // the same as heads of two
      t.rank = 3;
      t.shape[1] = (end - begin) / 2, t.shape[2] = 2;
      t.strides[1] = 2, t.strides[2] = 1;
    }
    return t;
  };
  for (int i = 0; i < 2000; ++i) {
    const TensorView a = slice(), b = slice();
    ASSERT_EQ(share_memory(a, b), meet(a, b, merged.as<float>())) << to_string(a) << " and " << to_string(b);
  }
}

}  // namespace
}  // namespace kf
