// The GEMM of the linear family for many tokens:  epilogue( prologue(x) @ weight^T ), all arithmetic in f32.
//
//   strip   as many output features (rows of the weight) as a vector has lanes, stored [in][lanes] in f32: what one
//           vector of a register tile is multiplied with. Plain weights are packed to strips once where they are
//           constant; low-bit weights are decoded from the bytes as they lie, a strip block at a time, for all rows
//           of an item.
//   panel   as many rows of x as a register tile has, stored [in][rows] in f32 with the prologue applied, so that a
//           tile reads one stream and no two of its rows fall into the same sets of the cache.
//   tiles   of A and of strips in bf16, in pieces that add up to f32, where the processor has matrix units (gemm_matrix-inl.h,
//           simd/matrix_units.h).
//   wide    panel: as many rows of x as some vectors have lanes, where all weights are sparse (gemm_sparse-inl.h): there
//           a lane is a row of x, and not a feature.
//   block   the part of the reduction dimension that is summed in registers. Blocks depend on the shape alone, so
//           that results do not depend on the number of threads.
//   pass    the rows of x that lie packed in the workspace at a time.
//   item    some rows of a pass times some pairs of strips: the unit that threads take.
//
// This header is what the vector code (gemm_simd.cpp) and the threaded driver (gemm.cpp) have in common.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backends/cpu/simd/matrix_units.h"
#include "core/sparse.h"
#include "kf/ops/common.h"

namespace kf::cpu {

// A panel of this depth (AVX2: 14 KB) stays in L1 while strips stream by. A multiple of 32, as blocks are or are decoded by.
inline constexpr std::int64_t kMaxDepth = 576;
// Rows that the panels of every instruction set divide.
inline constexpr std::int64_t kPanelUnit = 12;
// Rows of A that stay in L2 while the strips of an item pass by.
inline constexpr std::int64_t kChunkRows = 96;
inline constexpr std::int64_t kMaxPairsPerItem = 4;
// The same of tiles, of so many pieces of the weight: matrix units are done with what they read so soon that it is to be read seldom,
// and strips must leave room for A in L2.
inline constexpr std::int64_t kMaxTilePairs = 16;
inline constexpr std::int64_t tile_pairs_per_item(int pieces) {
  return pieces == 1 ? kMaxTilePairs : kMaxTilePairs / 2;
}
inline constexpr std::int64_t kMaxRowsPerPass = 576;
// Rows of a wide panel, and those that are packed together.
inline constexpr std::int64_t kMaxWideRows = 64, kWideUnit = 16;

inline constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The reduction dimension cut into blocks of equal depth (the last may be less), a multiple of 32.
struct Blocks {
  std::int64_t in = 0;      // whole length
  std::int64_t depth = 32;  // of a block
  std::int64_t count = 1;   // at least one: an empty sum is a sum
};
inline Blocks cut_blocks(std::int64_t in) {
  Blocks b;
  b.in = in;
  if (in == 0) return b;
  b.depth = ceil_div(ceil_div(in, ceil_div(in, kMaxDepth)), 32) * 32;
  b.count = ceil_div(in, b.depth);
  return b;
}

// How rows of A lie: as panels of a register tile's rows, unless one of these says otherwise.
struct PanelLayout {
  std::int64_t wide = 0;  // rows of a wide panel
  int pieces = 0;         // of bf16 that an element is cut into, as tiles of matrix units

  // Rows that are packed together, and rows that items are cut at.
  std::int64_t pack_unit() const {
    if (pieces != 0) return kTileRowsOfA;
    return wide == 0 ? kPanelUnit : std::min(wide, kWideUnit);
  }
  std::int64_t item_unit() const {
    if (pieces != 0) return 2 * kTileRowsOfA;
    return wide == 0 ? kPanelUnit : wide;
  }
  std::int64_t pairs_per_item() const { return pieces != 0 ? tile_pairs_per_item(pieces) : kMaxPairsPerItem; }
  std::int64_t element_bytes() const {
    return pieces != 0 ? 2 * pieces : static_cast<std::int64_t>(sizeof(float));
  }
  std::int64_t capacity_for(std::int64_t rows) const { return ceil_div(rows, item_unit()) * item_unit(); }
  std::size_t bytes(std::int64_t rows, const Blocks& blocks) const {
    return static_cast<std::size_t>(blocks.count * capacity_for(rows) * blocks.depth * element_bytes());
  }
};

// Rows of A in the workspace: panels in f32, [block][panel][depth][rows of a panel], or tiles,
// [block][panel of 16 rows][step of 32][piece][16 rows][32].
struct PackedRows {
  char* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t capacity = 0;  // rows that there is room for: whole panels
  PanelLayout layout;
  Blocks blocks;

  // The panel whose first row is `row`.
  float* panel(std::int64_t block, std::int64_t row) const {
    return reinterpret_cast<float*>(at(block, row));
  }
  char* at(std::int64_t block, std::int64_t row) const {
    return data + (block * capacity + row) * blocks.depth * layout.element_bytes();
  }
};

// A weight as strips. Packed strips keep the weight's dtype: [strip][in][lanes], missing features zero; those of a bf16 weight for
// matrix units are tiles, [strip][step][16][16][2].
struct StripWeight : Weight {
  const void* packed = nullptr;  // null: strips are made from the weight as they are needed

  StripWeight(const Weight& w, const void* packed) : Weight(w), packed(packed) {}
};

// Low-rank adapters: a reduction more, over the few numbers `low` that a token's adapter made of it. Every adapter is a
// block of it, of depth `rank` rounded up, zero for the tokens of others.
struct LowRank {
  PackedRows low;
  TensorView a, b;                      // as in Lora
  const std::int32_t* index = nullptr;  // of the pass's first row; null: one adapter
  std::int64_t index_stride = 1;
  float scale = 1.0f;

  bool present() const { return a.present(); }
  std::int64_t adapters() const { return low.blocks.count; }
  std::int64_t rank() const { return a.dim(-2); }
  bool uses(std::int64_t row, std::int64_t adapter) const {
    return index == nullptr || index[row * index_stride] == adapter;
  }
};

// One unit of work.
struct GemmItem {
  PackedRows a;
  const LowRank* low_rank = nullptr;          // of StoreEpilogue's, where there are adapters
  std::int64_t row_begin = 0, row_end = 0;    // rows of the pass
  std::int64_t pair_begin = 0, pair_end = 0;  // pairs of strips
  float* strips =
      nullptr;  // thread's own: kMaxPairsPerItem pairs of one block, where there are tiles one strip
  std::uint16_t* tiles = nullptr;  // thread's own, where there are tiles: as many pairs in pieces
  int weight_pieces = 0;           // at most, of what is no 16-bit float
  float* sums =
      nullptr;  // thread's own: [pair][row][2 * lanes]; of wide panels [panel][pair][2 * lanes][wide]
};

// What becomes of the sums. `row_offset` is the first row of the pass among all of x.
struct StoreEpilogue {  // out = act(sum + bias) + residual; a pair is two neighbouring strips of `weight`
  StripWeight weight;
  TensorView bias, residual, out;
  Activation activation = Activation::none;
  std::int64_t row_offset = 0;
};
struct GateEpilogue {  // hidden = act(gate) * up; a pair is a strip of each
  StripWeight gate, up;
  Activation activation = Activation::silu;
  PackedRows hidden;
};
// low = scale * sum where the row has the adapter, else 0; a pair is two strips of its matrix a.
struct LowRankEpilogue {
  StripWeight weight;
  const LowRank& low_rank;
  std::int64_t adapter;
};
struct ArgmaxEpilogue {  // running maximum of each row of the pass, thread's own; a pair as in StoreEpilogue
  StripWeight weight;
  float* max = nullptr;
  std::int32_t* index = nullptr;  // -1: none yet
};
// Whether (value, index) comes before (max, at) in torch.argmax's order: NaN, then the largest, then the
// lowest index.
inline bool argmax_before(float value, std::int32_t index, float max, std::int32_t at) {
  if (at < 0) return true;
  const bool nan = value != value, max_nan = max != max;
  if (nan != max_nan) return nan;
  return nan || value == max ? index < at : value > max;
}

// The vector code, for the best instruction set in use. Each works serially.
std::int64_t strip_lanes();
// Rows of the wide panels that a pass of so many rows is cut into.
std::int64_t wide_rows(std::int64_t rows);
// Rows [begin, end) of x, counted from row_offset + begin there, with the prologue applied. `begin` is a multiple of
// PanelLayout::pack_unit(); of wide panels and tiles they are at most that many.
void pack_rows(const TensorView& x, const Prologue& prologue, std::int64_t row_offset, std::int64_t begin,
               std::int64_t end, const PackedRows& packed);
// One strip of a plain weight: [in][lanes] in the weight's dtype.
void pack_strip(const TensorView& weight, std::int64_t strip, void* packed);
// The same of a bf16 weight as tiles.
void pack_tiles(const TensorView& weight, std::int64_t strip, void* packed);
void multiply(const GemmItem& item, const StoreEpilogue& epilogue);
void multiply(const GemmItem& item, const GateEpilogue& epilogue);
void multiply(const GemmItem& item, const ArgmaxEpilogue& epilogue);
void multiply(const GemmItem& item, const LowRankEpilogue& epilogue);

}  // namespace kf::cpu
