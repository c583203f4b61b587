#include "backends/cpu/attention/gemv.h"

#include <algorithm>

#include "backends/cpu/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/gemv.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::ForEachVector;
using kf::HWY_NAMESPACE::LoadF32;
using kf::HWY_NAMESPACE::ReduceSum;
using kf::HWY_NAMESPACE::StoreF32;

void VectorTimesRows(const float* x, const float* rows, std::int64_t stride, std::int64_t count,
                     std::int64_t dim, float scale, float* out) {
  const hn::ScalableTag<float> d;
  // Four rows at a time: their sums are independent chains of multiply-adds.
  const auto dot = [&](const float* const(&row)[4], float(&result)[4]) {
    auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    ForEachVector(dim, [&](std::int64_t i, auto extent) {
      const auto v = LoadF32(d, x + i, extent);
      s0 = hn::MulAdd(v, LoadF32(d, row[0] + i, extent), s0);
      s1 = hn::MulAdd(v, LoadF32(d, row[1] + i, extent), s1);
      s2 = hn::MulAdd(v, LoadF32(d, row[2] + i, extent), s2);
      s3 = hn::MulAdd(v, LoadF32(d, row[3] + i, extent), s3);
    });
    result[0] = scale * ReduceSum(d, s0);
    result[1] = scale * ReduceSum(d, s1);
    result[2] = scale * ReduceSum(d, s2);
    result[3] = scale * ReduceSum(d, s3);
  };
  for (std::int64_t j = 0; j < count; j += 4) {
    const std::int64_t last = count - 1;
    const float* const row[4] = {rows + j * stride, rows + std::min(j + 1, last) * stride,
                                 rows + std::min(j + 2, last) * stride,
                                 rows + std::min(j + 3, last) * stride};
    float result[4];
    dot(row, result);
    std::copy_n(result, std::min<std::int64_t>(4, count - j), out + j);
  }
}

void WeightedSumOfRows(const float* weights, const float* rows, std::int64_t stride, std::int64_t count,
                       std::int64_t dim, float* out) {
  const hn::ScalableTag<float> d;
  std::fill_n(out, dim, 0.0f);
  // Eight rows at a time between reading and writing the sums.
  for (std::int64_t j = 0; j < count; j += 8) {
    const std::int64_t end = std::min<std::int64_t>(j + 8, count);
    ForEachVector(dim, [&](std::int64_t i, auto extent) {
      auto sum = LoadF32(d, out + i, extent);
      for (std::int64_t r = j; r < end; ++r)
        sum = hn::MulAdd(hn::Set(d, weights[r]), LoadF32(d, rows + r * stride + i, extent), sum);
      StoreF32(d, sum, out + i, extent);
    });
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(VectorTimesRows);
HWY_EXPORT(WeightedSumOfRows);

void vector_times_rows(const float* x, const float* rows, std::int64_t stride, std::int64_t count,
                       std::int64_t dim, float scale, float* out) {
  HWY_DYNAMIC_DISPATCH(VectorTimesRows)(x, rows, stride, count, dim, scale, out);
}

void weighted_sum_of_rows(const float* weights, const float* rows, std::int64_t stride, std::int64_t count,
                          std::int64_t dim, float* out) {
  HWY_DYNAMIC_DISPATCH(WeightedSumOfRows)(weights, rows, stride, count, dim, out);
}

}  // namespace kf::cpu
#endif
