// What becomes of a tile's sums. Each epilogue names the strips of a pair and takes rows of finished tiles.
#if defined(KF_CPU_LINEAR_EPILOGUE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_EPILOGUE_INL_H_
#undef KF_CPU_LINEAR_EPILOGUE_INL_H_
#else
#define KF_CPU_LINEAR_EPILOGUE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/linear/rows-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A strip of a weight, by pair and side; `weight` is null where an odd number of strips leaves a side empty.
struct StripOf {
  const StripWeight* weight;
  std::int64_t strip;
};
HWY_INLINE StripOf NeighbouringStrip(const StripWeight& w, std::int64_t pair, int side) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t strip = 2 * pair + side;
  return {strip * lanes < w.layout.dim(0) ? &w : nullptr, strip};
}

HWY_INLINE StripOf StripAt(const StoreEpilogue& e, std::int64_t pair, int side) {
  return NeighbouringStrip(e.weight, pair, side);
}
HWY_INLINE StripOf StripAt(const ArgmaxEpilogue& e, std::int64_t pair, int side) {
  return NeighbouringStrip(e.weight, pair, side);
}
HWY_INLINE StripOf StripAt(const LowRankEpilogue& e, std::int64_t pair, int side) {
  return NeighbouringStrip(e.weight, pair, side);
}
HWY_INLINE StripOf StripAt(const GateEpilogue& e, std::int64_t pair, int side) {
  return {side == 0 ? &e.gate : &e.up, pair};
}

// Finish: rows [row_begin, row_begin + rows) of the pass, `sums` [rows][2 lanes].

// One strip of a tile: columns from `column` on, `part` of a vector, of elements T.
template <class T, class Part>
HWY_INLINE void StoreStrip(const StoreEpilogue& e, std::int64_t column, Part part, std::int64_t row,
                           std::int64_t rows, const float* sums) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  const bool has_bias = e.bias.present();
  const auto bias = has_bias ? LoadOperand(e.bias, column, part) : hn::Zero(d);
  const T* residual =
      e.residual.present() ? e.residual.as<const T>() + row * e.residual.stride(0) + column : nullptr;
  T* out = e.out.as<T>() + row * e.out.stride(0) + column;
  for (std::int64_t r = 0; r < rows; ++r, sums += 2 * lanes, out += e.out.stride(0)) {
    auto v = hn::Load(d, sums);
    if (has_bias) v = hn::Add(v, bias);
    if (e.activation != Activation::none) v = Activated(e.activation, v);
    if (residual != nullptr) {
      v = hn::Add(v, LoadF32(d, residual, part));
      residual += e.residual.stride(0);
    }
    StoreF32(d, v, out, part);
  }
}

// Asks for the memory that Finish() will touch, while the tile is still being multiplied.
HWY_INLINE void PrefetchFinish(const StoreEpilogue& e, std::int64_t pair, std::int64_t row_begin,
                               std::int64_t rows) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t column = 2 * pair * lanes, row = e.row_offset + row_begin;
  const auto fetch = [&](const TensorView& t) {
    const auto element = static_cast<std::int64_t>(dtype_info(t.dtype).block_bytes);
    const char* at = static_cast<const char*>(t.data) + (row * t.stride(0) + column) * element;
    for (std::int64_t r = 0; r < rows; ++r, at += t.stride(0) * element) {
      __builtin_prefetch(at, 1);
      __builtin_prefetch(at + (2 * lanes - 1) * element, 1);
    }
  };
  fetch(e.out);
  if (e.residual.present()) fetch(e.residual);
}
HWY_INLINE void PrefetchFinish(const GateEpilogue&, std::int64_t, std::int64_t, std::int64_t) {}
HWY_INLINE void PrefetchFinish(const ArgmaxEpilogue&, std::int64_t, std::int64_t, std::int64_t) {}
HWY_INLINE void PrefetchFinish(const LowRankEpilogue&, std::int64_t, std::int64_t, std::int64_t) {}

HWY_INLINE void Finish(const StoreEpilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                       const float* sums) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  with_activation_type(e.out.dtype, [&]<class T>(std::type_identity<T>) HWY_ATTR {
    for (int side = 0; side < 2; ++side) {
      const std::int64_t column = (2 * pair + side) * lanes, left = e.out.dim(1) - column;
      const std::int64_t row = e.row_offset + row_begin;
      if (left >= lanes)
        StoreStrip<T>(e, column, All(), row, rows, sums + side * lanes);
      else if (left > 0)
        StoreStrip<T>(e, column, First{static_cast<std::size_t>(left)}, row, rows, sums + side * lanes);
    }
  });
}

HWY_INLINE void Finish(const GateEpilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                       const float* sums) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t column = pair * lanes;
  const std::int64_t block = column / e.hidden.blocks.depth;
  const std::int64_t k =
      column - block * e.hidden.blocks.depth;  // whole vectors: the depth is a multiple of lanes
  HWY_ALIGN float lines[kTileRows * hn::MaxLanes(d)] = {};
  for (std::int64_t r = 0; r < rows; ++r, sums += 2 * lanes) {
    const auto gate = Activated(e.activation, hn::Load(d, sums));
    hn::Store(hn::Mul(gate, hn::Load(d, sums + lanes)), d, lines + r * lanes);
  }
  LinesToPanel(lines, lanes, lanes,
               e.hidden.panel(block, row_begin) + k * static_cast<std::int64_t>(kTileRows));
}

// Pairs of strips divide a block: its depth is a multiple of 32.
HWY_INLINE void Finish(const LowRankEpilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                       const float* sums) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  HWY_ALIGN float lines[kTileRows * 2 * hn::MaxLanes(d)] = {};
  for (std::int64_t r = 0; r < rows; ++r, sums += 2 * lanes) {
    if (!e.low_rank.uses(row_begin + r, e.adapter)) continue;
    const auto scale = hn::Set(d, e.low_rank.scale);
    hn::Store(hn::Mul(hn::Load(d, sums), scale), d, lines + 2 * r * lanes);
    hn::Store(hn::Mul(hn::Load(d, sums + lanes), scale), d, lines + (2 * r + 1) * lanes);
  }
  LinesToPanel(
      lines, 2 * lanes, 2 * lanes,
      e.low_rank.low.panel(e.adapter, row_begin) + 2 * pair * lanes * static_cast<std::int64_t>(kTileRows));
}

HWY_INLINE void Finish(const ArgmaxEpilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                       const float* sums) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t column = 2 * pair * lanes;
  const std::int64_t n = std::min(2 * lanes, e.weight.layout.dim(0) - column);
  for (std::int64_t r = 0; r < rows; ++r, sums += 2 * lanes) {
    float& max = e.max[row_begin + r];
    std::int32_t& index = e.index[row_begin + r];
    // Seldom does a tile hold a new maximum (or a NaN, which is not less either).
    const auto best = hn::Set(d, max);
    const auto less = hn::And(hn::Lt(hn::Load(d, sums), best), hn::Lt(hn::Load(d, sums + lanes), best));
    if (index >= 0 && hn::AllTrue(d, less)) continue;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::int32_t>(column + i);
      if (!argmax_before(sums[i], at, max, index)) continue;
      max = sums[i];
      index = at;
    }
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
