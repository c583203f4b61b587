// Tensors, dtypes, errors, reflection.

#include <gtest/gtest.h>

#include "kf/kf.h"

namespace kf {
namespace {

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
  EXPECT_EQ(slots_of(Op::rms_norm, &p).size(), 5u);
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

TEST(Op, AnyParamsIsAValue) {
  AnyParams a = RmsNormParams{.eps = 0.5f};
  AnyParams b = a;
  b.as<RmsNormParams>().eps = 0.25f;
  EXPECT_EQ(a.as<RmsNormParams>().eps, 0.5f);
}

}  // namespace
}  // namespace kf
