// Rows of x in f32 with the prologue applied: vector by vector, and packed to panels.
#if defined(KF_CPU_LINEAR_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_ROWS_INL_H_
#undef KF_CPU_LINEAR_ROWS_INL_H_
#else
#define KF_CPU_LINEAR_ROWS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/simd/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::BlockedSum;
using kf::HWY_NAMESPACE::kTileRows;
using kf::HWY_NAMESPACE::Transpose4x4;
using kf::HWY_NAMESPACE::Within;

// A row of x as its prologue makes it.
struct InputRow {
  const TensorView* x = nullptr;
  const Prologue* prologue = nullptr;
  std::int64_t offset = 0;          // of its first element
  float mean = 0.0f, scale = 1.0f;  // of the norm

  // Columns from `column` on: a vector, or its first ones; what lies beyond these is arbitrary.
  template <class Part>
  HWY_INLINE F32Vec Get(std::int64_t column, Part part) const {
    const F32Vec v = BeforeNorm(column, part);
    if (prologue->norm == NormKind::none) return v;
    const F32Tag d;
    const F32Vec weight =
        hn::Add(LoadOperand(prologue->norm_weight, column, part), hn::Set(d, prologue->norm_weight_offset));
    const F32Vec normal = hn::Mul(hn::Mul(hn::Sub(v, hn::Set(d, mean)), hn::Set(d, scale)), weight);
    if (!prologue->norm_bias.present()) return normal;
    return hn::Add(normal, LoadOperand(prologue->norm_bias, column, part));
  }

  template <class Part>
  HWY_INLINE F32Vec BeforeNorm(std::int64_t column, Part part) const {
    const F32Vec v = LoadOperand(*x, offset + column, part);
    return prologue->activation == Activation::none ? v : Activated(prologue->activation, v);
  }
};

HWY_INLINE InputRow RowOf(const TensorView& x, const Prologue& prologue, std::int64_t row) {
  InputRow r{&x, &prologue, row * x.stride(0)};
  if (prologue.norm == NormKind::none) return r;
  const F32Tag d;
  const std::int64_t n = x.dim(1);
  const double count = static_cast<double>(n);
  if (prologue.norm == NormKind::layer) {
    const double sum = BlockedSum(n, [&](F32Vec acc, std::int64_t i, auto part) HWY_ATTR {
      return hn::Add(acc, Within(d, r.BeforeNorm(i, part), part));
    });
    r.mean = static_cast<float>(sum / count);
  }
  const F32Vec mean = hn::Set(d, r.mean);
  const double squares = BlockedSum(n, [&](F32Vec acc, std::int64_t i, auto part) HWY_ATTR {
    const F32Vec v = Within(d, hn::Sub(r.BeforeNorm(i, part), mean), part);
    return hn::MulAdd(v, v, acc);
  });
  r.scale = static_cast<float>(1.0 / std::sqrt(squares / count + prologue.eps));
  return r;
}

// A wide panel's vectors are accumulated in registers: 8 of 16.
inline constexpr std::size_t kMaxWideVectors =
    std::min<std::size_t>(8, static_cast<std::size_t>(kMaxWideRows) / hn::MaxLanes(F32Tag()));

// lines[r][k], lines `stride` apart, to[k][r], these `to_stride` apart; r < rows and k < depth, both multiples of 4.
template <class T>
HWY_INLINE void LinesToColumns(const T* lines, std::int64_t stride, std::int64_t rows, std::int64_t depth,
                               float* to, std::int64_t to_stride) {
  for (std::int64_t k = 0; k < depth; k += 4, lines += 4, to += 4 * to_stride)
    for (std::int64_t r = 0; r < rows; r += 4) {
      const T* const from = lines + r * stride;
      Transpose4x4(from, from + stride, from + 2 * stride, from + 3 * stride, to + r,
                   static_cast<std::size_t>(to_stride));
    }
}

// lines[r][k], kTileRows lines `stride` apart, to the panel's [k][r] for `depth` values of k, a multiple of 4.
template <class T>
HWY_INLINE void LinesToPanel(const T* lines, std::int64_t stride, std::int64_t depth, float* panel) {
  constexpr auto kRows = static_cast<std::int64_t>(kTileRows);
  for (std::int64_t k = 0; k < depth; k += 4, lines += 4, panel += 4 * kRows) {
    std::int64_t r = 0;
    for (; r + 4 <= kRows; r += 4) {
      const T* const from = lines + r * stride;
      Transpose4x4(from, from + stride, from + 2 * stride, from + 3 * stride, panel + r, kTileRows);
    }
    if constexpr (kRows % 4 == 2) {
      const hn::CappedTag<float, 4> d;
      const hn::Half<decltype(d)> half;
      const auto a = LoadF32(d, lines + r * stride), b = LoadF32(d, lines + (r + 1) * stride);
      const auto low = hn::InterleaveLower(d, a, b), high = hn::InterleaveUpper(d, a, b);
      hn::StoreU(hn::LowerHalf(half, low), half, panel + r);
      hn::StoreU(hn::UpperHalf(half, low), half, panel + kRows + r);
      hn::StoreU(hn::LowerHalf(half, high), half, panel + 2 * kRows + r);
      hn::StoreU(hn::UpperHalf(half, high), half, panel + 3 * kRows + r);
    }
  }
}

// A whole panel of x as it is, in multiples of 4 columns.
HWY_INLINE void PackPlainPanel(const TensorView& x, std::int64_t x_row, std::int64_t row,
                               const PackedRows& packed) {
  const Blocks& blocks = packed.blocks;
  with_activation_type(x.dtype, [&]<class T>(std::type_identity<T>) HWY_ATTR {
    const T* const from = x.as<const T>() + x_row * x.stride(0);
    for (std::int64_t b = 0; b < blocks.count; ++b) {
      const std::int64_t begin = b * blocks.depth;
      LinesToPanel(from + begin, x.stride(0), std::min(blocks.in - begin, blocks.depth),
                   packed.panel(b, row));
    }
  });
}

// Calls body(block, k, lines, stride, columns) for some columns of `count` rows of x after the other, from column k of the
// block on: in f32 with the prologue applied, rounded up to a multiple of 4 columns, and up to kRows rows with zeros.
template <std::int64_t kRows, class Body>
HWY_INLINE void ForEachLines(const TensorView& x, const Prologue& prologue, std::int64_t x_row,
                             std::int64_t count, const Blocks& blocks, const Body& body) {
  constexpr std::int64_t kColumns = 64;
  HWY_ALIGN float lines[kRows * kColumns] = {};
  InputRow rows[kRows];
  for (std::int64_t r = 0; r < count; ++r) rows[r] = RowOf(x, prologue, x_row + r);
  for (std::int64_t b = 0; b < blocks.count; ++b) {
    const std::int64_t begin = b * blocks.depth, depth = std::min(blocks.in - begin, blocks.depth);
    for (std::int64_t k = 0; k < depth; k += kColumns) {
      const std::int64_t columns = std::min(depth - k, kColumns);
      for (std::int64_t r = 0; r < count; ++r)
        ForEachVector(columns, [&](std::int64_t i, auto part) HWY_ATTR {
          hn::Store(rows[r].Get(begin + k + i, part), F32Tag(), lines + r * kColumns + i);
        });
      body(b, k, lines, kColumns, ceil_div(columns, 4) * 4);
    }
  }
}

// Rows [row, row + count) of the pass, at most a panel's, from row `x_row` of x on.
HWY_INLINE void PackPanel(const TensorView& x, const Prologue& prologue, std::int64_t x_row, std::int64_t row,
                          std::int64_t count, const PackedRows& packed) {
  if (prologue.empty() && count == static_cast<std::int64_t>(kTileRows) && x.dim(1) % 4 == 0)
    return PackPlainPanel(x, x_row, row, packed);
  ForEachLines<static_cast<std::int64_t>(kTileRows)>(
      x, prologue, x_row, count, packed.blocks,
      [&](std::int64_t b, std::int64_t k, const float* lines, std::int64_t stride,
          std::int64_t columns) HWY_ATTR {
        LinesToPanel(lines, stride, columns, packed.panel(b, row) + k * static_cast<std::int64_t>(kTileRows));
      });
}

// The same for rows of a wide panel, at most a unit of them. Lanes of the panel behind the last row are zeros.
HWY_INLINE void PackWide(const TensorView& x, const Prologue& prologue, std::int64_t x_row, std::int64_t row,
                         std::int64_t count, const PackedRows& packed) {
  const std::int64_t wide = packed.layout.wide, unit = packed.layout.pack_unit();
  ForEachLines<kWideUnit>(x, prologue, x_row, count, packed.blocks,
                          [&](std::int64_t b, std::int64_t k, const float* lines, std::int64_t stride,
                              std::int64_t columns) HWY_ATTR {
                            float* const panel = packed.panel(b, row / wide * wide) + row % wide;
                            LinesToColumns(lines, stride, unit, columns, panel + k * wide, wide);
                          });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
