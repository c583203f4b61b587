// The register tile of the GEMM: up to kTileRows rows of A times two strips of B, accumulated in f32.
// Everything else around it is about keeping its operands in the nearest cache.
#if defined(KF_CPU_LINEAR_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_TILE_INL_H_
#undef KF_CPU_LINEAR_TILE_INL_H_
#else
#define KF_CPU_LINEAR_TILE_INL_H_
#endif

#include <cstddef>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Two accumulators a row, two vectors of B and one broadcast must fit the registers: 32 of them with AVX-512
// and on 64-bit Arm, 16 elsewhere.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64
inline constexpr std::size_t kTileRows = 12;
#else
inline constexpr std::size_t kTileRows = 6;
#endif

// c[r][0 .. 2 lanes) (+)= sum over k of a[r][k] * (b0[k] | b1[k]).
// a: rows kPackedStride apart. b0, b1: strips, `lanes` values for each k.
template <std::size_t kRows>
HWY_NOINLINE void TileOf(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b0,
                         const float* HWY_RESTRICT b1, std::size_t depth, float* HWY_RESTRICT c,
                         bool accumulate) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  using V = hn::Vec<decltype(d)>;
  V left[kRows], right[kRows];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) left[r] = right[r] = hn::Zero(d);
  for (std::size_t k = 0; k < depth; ++k) {
    const V w0 = hn::Load(d, b0), w1 = hn::Load(d, b1);
    b0 += lanes;
    b1 += lanes;
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kRows; ++r) {
      const V x = hn::Set(d, a[r * kPackedStride]);
      left[r] = hn::MulAdd(x, w0, left[r]);
      right[r] = hn::MulAdd(x, w1, right[r]);
    }
    ++a;
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < kRows; ++r) {
    float* const row = c + r * 2 * lanes;
    if (accumulate) {
      left[r] = hn::Add(left[r], hn::Load(d, row));
      right[r] = hn::Add(right[r], hn::Load(d, row + lanes));
    }
    hn::Store(left[r], d, row);
    hn::Store(right[r], d, row + lanes);
  }
}

template <std::size_t kRows = kTileRows>
HWY_INLINE void Tile(std::size_t rows, const float* a, const float* b0, const float* b1, std::size_t depth,
                     float* c, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return TileOf<kRows>(a, b0, b1, depth, c, accumulate);
    return Tile<kRows - 1>(rows, a, b0, b1, depth, c, accumulate);
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
