#include "kf/dlpack.h"

#include <gtest/gtest.h>

#include "kf/error.h"

namespace kf {
namespace {

TEST(DlPack, GoesOutAndComesBackWithoutACopy) {
  DLManagedTensor* m = nullptr;
  void* data = nullptr;
  {
    const Tensor t(DType::bf16, {2, 3});
    data = t.view().data;
    m = to_dlpack(t);
  }  // the exported tensor keeps the memory alive
  const TensorView v = from_dlpack(m->dl_tensor);
  EXPECT_EQ(v.data, data);
  EXPECT_EQ(v.dtype, DType::bf16);
  EXPECT_EQ(shape_string(v), "[2, 3]");
  v.as<std::uint16_t>()[5] = 7;
  m->deleter(m);
}

TEST(DlPack, StridesAndOffsetsAreHonoured) {
  float data[12];
  std::int64_t shape[] = {2, 2}, strides[] = {1, 4};
  const DLTensor d{data, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, strides, 8};
  const TensorView v = from_dlpack(d);
  EXPECT_EQ(v.as<float>(), data + 2);
  EXPECT_EQ(v.stride(1), 4);
}

TEST(DlPack, ShapesThatCannotBeAreRefused) {
  const auto import = [](std::int64_t a, std::int64_t b, std::int64_t stride) {
    std::int64_t shape[] = {a, b}, strides[] = {stride, 1};
    return from_dlpack({nullptr, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, stride ? strides : nullptr, 0});
  };
  EXPECT_THROW(import(-1, 2, 0), Error);
  EXPECT_THROW(import(std::int64_t{1} << 40, std::int64_t{1} << 40, 0), Error);
  EXPECT_THROW(import(4, 1, std::int64_t{1} << 62), Error);  // spans more than can be counted
  EXPECT_THROW(from_dlpack({nullptr, {kDLCPU, 0}, 1, {kDLFloat, 32, 1}, nullptr, nullptr, 0}), Error);
  EXPECT_EQ(import(4, 2, 16).stride(0), 16);
}

TEST(DlPack, WhatTheLibraryDoesNotHaveIsRefused) {
  std::int64_t shape[] = {2};
  EXPECT_THROW(from_dlpack({nullptr, {kDLCPU, 0}, 1, {kDLFloat, 64, 1}, shape, nullptr, 0}), Error);
  EXPECT_THROW(from_dlpack({nullptr, {kDLMetal, 0}, 1, {kDLFloat, 32, 1}, shape, nullptr, 0}), Error);
  EXPECT_THROW(to_dlpack(Tensor(DType::q4_1, {1, 32})), Error);
}

}  // namespace
}  // namespace kf
