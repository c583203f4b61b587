// The GEMM's vector code: one item, serially.
#include "backends/cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemm_simd.cpp"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <type_traits>

#include "backends/cpu/linear/epilogue-inl.h"
#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/gemm_matrix-inl.h"
#include "backends/cpu/linear/gemm_sparse-inl.h"
#include "backends/cpu/linear/rows-inl.h"
#include "backends/cpu/linear/strips-inl.h"
#include "backends/cpu/linear/weights.h"
#include "backends/cpu/simd/tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using kf::HWY_NAMESPACE::MultiplyTile;

static_assert(kChunkRows % kPanelUnit == 0 && kPanelUnit % kTileRows == 0);

// How far a strip is asked for ahead by the first tile that reads it: from memory the processor's own fetching ends with each page.
inline constexpr std::size_t kFetchAhead = 4096;

// c (+)= rows of a panel times two strips.
template <std::size_t kRows, std::size_t kAhead, class T>
HWY_NOINLINE void TileOf(const float* panel, const T* b0, const T* b1, std::size_t depth, float* c,
                         bool accumulate) {
  const F32Tag d;
  const std::size_t pair = 2 * hn::Lanes(d);
  if (accumulate) {
    const auto add = [d](std::size_t, const float* total, F32Vec sum)
                         HWY_ATTR { return hn::Add(hn::Load(d, total), sum); };
    MultiplyTile<kRows, 1, kTileRows, 1, kAhead>(panel, b0, b1, depth, add, c, pair);
  } else {
    const auto alone = [](std::size_t, const float*, F32Vec sum) HWY_ATTR { return sum; };
    MultiplyTile<kRows, 1, kTileRows, 1, kAhead>(panel, b0, b1, depth, alone, c, pair);
  }
}

template <class T, std::size_t kRows = kTileRows>
HWY_INLINE void Tile(std::size_t rows, bool first, const float* panel, const T* b0, const T* b1,
                     std::size_t depth, float* c, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      return first ? TileOf<kRows, kFetchAhead>(panel, b0, b1, depth, c, accumulate)
                   : TileOf<kRows, 0>(panel, b0, b1, depth, c, accumulate);
    return Tile<T, kRows - 1>(rows, first, panel, b0, b1, depth, c, accumulate);
  }
}

// Two strips: in f32, or packed 16-bit floats, which few rows read as they lie: a conversion a tile is less than a pass that
// writes them in f32.
inline constexpr std::int64_t kFewRows = 2 * static_cast<std::int64_t>(kTileRows);
struct StripPair {
  DType dtype = DType::f32;
  const char* at[2] = {};

  HWY_INLINE std::int64_t bytes() const { return dtype_info(dtype).block_bytes; }  // of an element
};
// Whether the pair's strips lie packed in one 16-bit dtype.
HWY_INLINE bool PackedIn16Bits(const StripOf& first, const StripOf& second) {
  const StripWeight& w = *first.weight;
  if (w.packed == nullptr || w.layout.dtype == DType::f32) return false;
  return second.weight == nullptr ||
         (second.weight->packed != nullptr && second.weight->layout.dtype == w.layout.dtype);
}

// The tile from column k of the strips on.
HWY_INLINE void TileOfPair(const StripPair& strips, std::int64_t k, std::int64_t rows, bool first,
                           const float* panel, std::int64_t depth, float* c, bool accumulate) {
  const std::int64_t skip = k * static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const auto tile = [&]<class T>(std::type_identity<T>) HWY_ATTR {
    Tile(static_cast<std::size_t>(rows), first, panel, reinterpret_cast<const T*>(strips.at[0]) + skip,
         reinterpret_cast<const T*>(strips.at[1]) + skip, static_cast<std::size_t>(depth), c, accumulate);
  };
  with_activation_type(strips.dtype, tile);
}

// Asks for the share of a strip that falls to the tile at row `at` of `rows`, so that the strip has come from
// the last cache or from memory when its turn is.
HWY_INLINE void PrefetchPart(const char* strip, std::int64_t bytes, std::int64_t at, std::int64_t rows) {
  constexpr std::int64_t kLine = 64, kTile = kTileRows;
  const std::int64_t end = std::min(bytes, bytes * (at + kTile) / rows);
  for (std::int64_t i = bytes * at / rows; i < end; i += kLine) __builtin_prefetch(strip + i, 0, 2);
}

// Whether one of these rows has the adapter.
HWY_INLINE bool AnyUses(const LowRank& l, std::int64_t row, std::int64_t rows, std::int64_t adapter) {
  bool any = false;
  for (std::int64_t r = 0; r < rows; ++r) any = any || l.uses(row + r, adapter);
  return any;
}

// Whether an epilogue wants the sums of these rows at all.
template <class Epilogue>
HWY_INLINE bool Wants(const Epilogue& e, std::int64_t row, std::int64_t rows) {
  if constexpr (std::is_same_v<Epilogue, LowRankEpilogue>) return AnyUses(e.low_rank, row, rows, e.adapter);
  return true;
}

// Loop order, outermost first: blocks of depth (strips made once for all rows) > chunks of rows (A in L2) >
// pairs of strips (one in L1) > tiles. Sums pass from block to block in memory.
template <class Epilogue>
void Multiply(const GemmItem& item, const Epilogue& epilogue) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t item_rows = item.row_end - item.row_begin;
  const Blocks& blocks = item.a.blocks;
  // A chain of additions ends in the middle of a long block and is added to the total: the error of a sum of n is then as
  // of chains of this and of n / this, and not as of n.
  const std::int64_t chain = blocks.depth <= kMaxDepth / 2 ? blocks.depth : ceil_div(blocks.depth, 8) * 4;
  // Behind the weight's blocks come those of adapters.
  const std::int64_t count = blocks.count + (item.low_rank != nullptr ? item.low_rank->adapters() : 0);
  for (std::int64_t block = 0; block < count; ++block) {
    const std::int64_t adapter = block - blocks.count;  // negative: the weight itself
    const std::int64_t k_begin = adapter < 0 ? block * blocks.depth : 0;
    const std::int64_t depth =
        adapter < 0 ? std::min(blocks.depth, blocks.in - k_begin) : item.low_rank->rank();
    const PackedRows& a = adapter < 0 ? item.a : item.low_rank->low;
    StripPair strips[kMaxPairsPerItem];
    for (std::int64_t pair = item.pair_begin; pair < item.pair_end; ++pair) {
      const std::int64_t p = pair - item.pair_begin;
      const StripOf sides[] = {StripAt(epilogue, pair, 0), StripAt(epilogue, pair, 1)};
      StripPair& both = strips[p];
      if (adapter < 0 && item_rows <= kFewRows && PackedIn16Bits(sides[0], sides[1]))
        both.dtype = sides[0].weight->layout.dtype;
      for (int side = 0; side < 2; ++side) {
        const StripOf& of = sides[side];
        float* const buffer = item.strips + (2 * p + side) * kMaxDepth * lanes;
        if (of.weight == nullptr) {
          both.at[side] = both.at[0];
        } else if (both.dtype != DType::f32) {
          both.at[side] = static_cast<const char*>(of.weight->packed) +
                          (of.strip * blocks.in + k_begin) * lanes * both.bytes();
        } else {
          const StripWeight w =
              adapter < 0 ? *of.weight : StripWeight(adapter_weight(item.low_rank->b, adapter), nullptr);
          both.at[side] = reinterpret_cast<const char*>(StripBlock(w, of.strip, k_begin, depth, buffer));
        }
      }
    }
    for (std::int64_t chunk = item.row_begin; chunk < item.row_end; chunk += kChunkRows) {
      const std::int64_t chunk_end = std::min(item.row_end, chunk + kChunkRows);
      for (std::int64_t pair = item.pair_begin; pair < item.pair_end; ++pair) {
        const std::int64_t p = pair - item.pair_begin;
        for (std::int64_t row = chunk; row < chunk_end; row += static_cast<std::int64_t>(kTileRows)) {
          const std::int64_t rows = std::min(static_cast<std::int64_t>(kTileRows), chunk_end - row);
          if (!Wants(epilogue, row, rows)) continue;
          // Sums of one block alone need no memory of their own: the tile is finished at once.
          float* const sums =
              count == 1 ? item.sums : item.sums + (p * item_rows + row - item.row_begin) * 2 * lanes;
          if (block == count - 1) PrefetchFinish(epilogue, pair, row, rows);
          if (chunk == item.row_begin && pair + 1 < item.pair_end)
            for (const char* next : strips[p + 1].at)
              PrefetchPart(next, depth * lanes * strips[p + 1].bytes(), row - chunk, chunk_end - chunk);
          // An adapter's part is left out where no row uses it.
          if (adapter < 0 || AnyUses(*item.low_rank, row, rows, adapter)) {
            const float* const panel = a.panel(adapter < 0 ? block : adapter, row);
            for (std::int64_t k = 0; k < depth || k == 0; k += chain)
              TileOfPair(strips[p], k, rows, row == item.row_begin,
                         panel + k * static_cast<std::int64_t>(kTileRows), std::min(chain, depth - k), sums,
                         block > 0 || k > 0);
          }
          if (block == count - 1) Finish(epilogue, pair, row, rows, sums);
        }
      }
    }
  }
}

template <class Epilogue>
HWY_INLINE void MultiplyAny(const GemmItem& item, const Epilogue& e) {
  if (item.a.layout.wide != 0) return MultiplySparse(item, e);
  if (item.a.layout.pieces != 0) return MultiplyTiles(item, e);
  Multiply(item, e);
}
void MultiplyStore(const GemmItem& item, const StoreEpilogue& e) { MultiplyAny(item, e); }
void MultiplyGate(const GemmItem& item, const GateEpilogue& e) { MultiplyAny(item, e); }
void MultiplyArgmax(const GemmItem& item, const ArgmaxEpilogue& e) { MultiplyAny(item, e); }
void MultiplyLowRank(const GemmItem& item, const LowRankEpilogue& e) { Multiply(item, e); }

void PackRows(const TensorView& x, const Prologue& prologue, std::int64_t row_offset, std::int64_t begin,
              std::int64_t end, const PackedRows& packed) {
  constexpr auto kRows = static_cast<std::int64_t>(kTileRows);
  if (packed.layout.wide != 0) return PackWide(x, prologue, row_offset + begin, begin, end - begin, packed);
  if (packed.layout.pieces != 0)
    return PackTileRows(x, prologue, row_offset + begin, begin, end - begin, packed);
  for (std::int64_t row = begin; row < end; row += kRows)
    PackPanel(x, prologue, row_offset + row, row, std::min(kRows, end - row), packed);
}

void PackStrip(const TensorView& weight, std::int64_t strip, void* packed) {
  if (weight.dtype == DType::f32)
    GatherStrip(weight, strip, 0, weight.dim(1), static_cast<float*>(packed));
  else
    GatherStrip(weight, strip, 0, weight.dim(1), static_cast<std::uint16_t*>(packed));
}

void PackTiles(const TensorView& weight, std::int64_t strip, void* packed) {
  PackWeightTiles(weight, strip, 0, weight.dim(1), static_cast<std::uint16_t*>(packed));
}

std::int64_t WideRows(std::int64_t rows) {
  constexpr auto kLanes = static_cast<std::int64_t>(hn::MaxLanes(F32Tag()));
  if (rows <= kLanes) return kLanes;
  constexpr std::int64_t kMost = static_cast<std::int64_t>(kMaxWideVectors) * kLanes;
  return ceil_div(ceil_div(rows, ceil_div(rows, kMost)), kWideUnit) * kWideUnit;
}

std::int64_t StripLanes() { return static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<float>())); }

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(MultiplyStore);
HWY_EXPORT(MultiplyGate);
HWY_EXPORT(MultiplyArgmax);
HWY_EXPORT(MultiplyLowRank);
HWY_EXPORT(PackRows);
HWY_EXPORT(PackStrip);
HWY_EXPORT(PackTiles);
HWY_EXPORT(StripLanes);
HWY_EXPORT(WideRows);

std::int64_t strip_lanes() { return HWY_DYNAMIC_DISPATCH(StripLanes)(); }
std::int64_t wide_rows(std::int64_t rows) { return HWY_DYNAMIC_DISPATCH(WideRows)(rows); }

void pack_rows(const TensorView& x, const Prologue& prologue, std::int64_t row_offset, std::int64_t begin,
               std::int64_t end, const PackedRows& packed) {
  HWY_DYNAMIC_DISPATCH(PackRows)(x, prologue, row_offset, begin, end, packed);
}

void pack_strip(const TensorView& weight, std::int64_t strip, void* packed) {
  HWY_DYNAMIC_DISPATCH(PackStrip)(weight, strip, packed);
}

void pack_tiles(const TensorView& weight, std::int64_t strip, void* packed) {
  HWY_DYNAMIC_DISPATCH(PackTiles)(weight, strip, packed);
}

void multiply(const GemmItem& item, const StoreEpilogue& e) { HWY_DYNAMIC_DISPATCH(MultiplyStore)(item, e); }
void multiply(const GemmItem& item, const GateEpilogue& e) { HWY_DYNAMIC_DISPATCH(MultiplyGate)(item, e); }
void multiply(const GemmItem& item, const ArgmaxEpilogue& e) {
  HWY_DYNAMIC_DISPATCH(MultiplyArgmax)(item, e);
}
void multiply(const GemmItem& item, const LowRankEpilogue& e) {
  HWY_DYNAMIC_DISPATCH(MultiplyLowRank)(item, e);
}

}  // namespace kf::cpu
#endif
