// The register tile of matrix products: some rows of A times two vectors of B at a time, summed in f32.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_TILE_INL_H_
#undef KF_SIMD_TILE_INL_H_
#else
#define KF_SIMD_TILE_INL_H_
#endif

#include <cstddef>

#include "backends/cpu/simd/load_store-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Two accumulators a row, two vectors of B and one broadcast must fit the registers: 32 of them with AVX-512
// and on 64-bit Arm, 16 elsewhere.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr std::size_t kTileRows = 12;
#else
inline constexpr std::size_t kTileRows = 6;
#endif

// c[r] = join(r, c[r], sum over k < depth of a[r * kRowA + k * kStepA] * (b0[k] | b1[k])) for kRows rows, where b0[k] is
// the vector at b0 + k * kStepB lanes. A row of C is two vectors, rows are stride_c floats apart. join(r, c, sum) gets
// where a vector of C lies. What is there is added to the finished sum, not the sum begun with it: a chain of additions
// that goes on from a large number rounds as if all of that had been its own. B, f32 or 16-bit floats, is asked for kFetchAhead
// bytes ahead, if any.
template <std::size_t kRows, std::size_t kRowA, std::size_t kStepA, std::size_t kStepB,
          std::size_t kFetchAhead = 0, class T, class Join>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, const T* HWY_RESTRICT b0, const T* HWY_RESTRICT b1,
                             std::size_t depth, const Join& join, float* HWY_RESTRICT c,
                             std::size_t stride_c) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  F32Vec left[kRows], right[kRows];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    left[r] = hn::Zero(d);
    right[r] = hn::Zero(d);
  }
  const auto step = [&](std::size_t k) HWY_ATTR {
    if constexpr (kFetchAhead > 0) {
      __builtin_prefetch(b0 + k * kStepB * lanes + kFetchAhead / sizeof(T));
      __builtin_prefetch(b1 + k * kStepB * lanes + kFetchAhead / sizeof(T));
    }
    const F32Vec w0 = LoadF32(d, b0 + k * kStepB * lanes), w1 = LoadF32(d, b1 + k * kStepB * lanes);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const F32Vec x = hn::Set(d, a[k * kStepA + r * kRowA]);
      left[r] = hn::MulAdd(x, w0, left[r]);
      right[r] = hn::MulAdd(x, w1, right[r]);
    }
  };
  // Four steps at a time: the loop's own instructions count where another thread shares the core.
  constexpr std::size_t kSteps = 4;
  std::size_t left_over = depth % kSteps;
  for (std::size_t k = depth / kSteps; k > 0; --k) {
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kSteps; ++i) step(i);
    a += kSteps * kStepA;
    b0 += kSteps * kStepB * lanes;
    b1 += kSteps * kStepB * lanes;
  }
  for (; left_over > 0; --left_over) {
    step(0);
    a += kStepA;
    b0 += kStepB * lanes;
    b1 += kStepB * lanes;
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    float* const to = c + r * stride_c;
    hn::Store(join(r, to, left[r]), d, to);
    hn::Store(join(r, to + lanes, right[r]), d, to + lanes);
  }
}

// Four rows of four elements, `stride` apart, transposed: to[i * to_stride] receives element i of the four.
template <class T>
HWY_INLINE void Transpose4x4(const T* r0, const T* r1, const T* r2, const T* r3, float* to,
                             std::size_t to_stride) {
  const hn::CappedTag<float, 4> d;
  const hn::Repartition<double, decltype(d)> dd;
  const auto a = LoadF32(d, r0), b = LoadF32(d, r1), c = LoadF32(d, r2), e = LoadF32(d, r3);
  const auto ab01 = hn::BitCast(dd, hn::InterleaveLower(d, a, b)),
             ab23 = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
  const auto ce01 = hn::BitCast(dd, hn::InterleaveLower(d, c, e)),
             ce23 = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab01, ce01)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab01, ce01)), d, to + to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab23, ce23)), d, to + 2 * to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab23, ce23)), d, to + 3 * to_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
