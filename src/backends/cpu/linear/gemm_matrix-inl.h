// The GEMM on the processor's matrix units: x and weights are cut into pieces of bf16 (simd/matrix_units.h), which are what AMX
// multiplies. A strip of AVX-512 has as many features as a tile of B.
//
// Infinities. A value that is not finite goes whole into its last piece, which is multiplied with the first piece of the other side
// alone: beside other pieces it would meet values of either sign. Where x has but one piece, both pieces of a weight have its sign.
#if defined(KF_CPU_LINEAR_GEMM_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMM_MATRIX_INL_H_
#undef KF_CPU_LINEAR_GEMM_MATRIX_INL_H_
#else
#define KF_CPU_LINEAR_GEMM_MATRIX_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "backends/cpu/linear/epilogue-inl.h"
#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/rows-inl.h"
#include "backends/cpu/linear/strips-inl.h"
#include "backends/cpu/simd/matrix_units.h"
#include "backends/cpu/simd/pieces-inl.h"
#include "backends/cpu/simd/words-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET <= HWY_AVX3

inline constexpr std::int64_t kTileElements = kTileBytes / 2;
// Of a pair of strips in one piece: 16 KB.
inline constexpr std::int64_t kStepsInL1 = 8;

// Sixteen elements of a row of A to its pieces, which are a tile apart.
template <int kPieces>
HWY_INLINE void StorePieces(F32Vec v, std::uint16_t* to) {
  const hn::Rebind<std::uint16_t, F32Tag> d16;
  const F32Vec rest = CutHeads<kPieces, Cut::nearest>(v, [&](int piece, WordVec bits) HWY_ATTR {
    const hn::RebindToSigned<F32Tag> di;
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, hn::ShiftRight<16>(bits))), d16, to + piece * kTileElements);
  });
  hn::StoreU(ToBf16(rest), d16, to + (kPieces - 1) * kTileElements);
}

// A block of a strip, [depth][16] in f32, to tiles of B: pairs of columns side by side, zeros behind the last column.
template <int kPieces, Cut kCut>
HWY_INLINE void CutStrip(const float* strip, std::int64_t depth, std::uint16_t* to) {
  const F32Tag d;
  const WordTag du;
  for (std::int64_t k = 0; k < depth; k += kTileDepth, to += kPieces * kTileElements)
    for (std::int64_t i = 0; i < kTileDepth; i += 2) {
      const auto column = [&](std::int64_t at)
                              HWY_ATTR { return at < depth ? hn::LoadU(d, strip + at * 16) : hn::Zero(d); };
      WordVec heads[kMaxPieces];
      CutPairs<kPieces, kCut>(column(k + i), column(k + i + 1), heads);
      for (int piece = 0; piece < kPieces; ++piece)
        hn::StoreU(heads[piece], du, reinterpret_cast<std::uint32_t*>(to + piece * kTileElements + i * 16));
    }
}

// Where elements [k, k + 16) of a row lie in the first piece.
HWY_INLINE std::uint16_t* InTile(const PackedRows& a, std::int64_t block, std::int64_t row, std::int64_t k) {
  const std::int64_t panel = row / kTileRowsOfA * kTileRowsOfA;
  return reinterpret_cast<std::uint16_t*>(a.at(block, panel)) +
         k / kTileDepth * a.layout.pieces * kTileElements + (row - panel) * kTileDepth + k % kTileDepth;
}

// bf16 as it is.
HWY_INLINE void CopyTileRows(const TensorView& x, std::int64_t x_row, std::int64_t row, std::int64_t count,
                             const PackedRows& packed) {
  const Blocks& blocks = packed.blocks;
  const Bf16* const from = x.as<const Bf16>() + x_row * x.stride(0);
  for (std::int64_t b = 0; b < blocks.count; ++b) {
    const std::int64_t begin = b * blocks.depth, depth = std::min(blocks.in - begin, blocks.depth);
    for (std::int64_t k = 0; k < depth; k += kTileDepth) {
      const auto bytes = static_cast<std::size_t>(std::min(kTileDepth, depth - k)) * sizeof(Bf16);
      for (std::int64_t r = 0; r < count; ++r) {
        std::uint16_t* const to = InTile(packed, b, row + r, k);
        if (bytes < 64) std::memset(to, 0, 64);
        std::memcpy(to, from + r * x.stride(0) + begin + k, bytes);
      }
    }
  }
}

// Rows [row, row + count) of the pass, at most a tile's, from row `x_row` of x on. Rows of a tile behind the last one are arbitrary.
HWY_INLINE void PackTileRows(const TensorView& x, const Prologue& prologue, std::int64_t x_row,
                             std::int64_t row, std::int64_t count, const PackedRows& packed) {
  if (prologue.empty() && x.dtype == DType::bf16) return CopyTileRows(x, x_row, row, count, packed);
  const F32Tag d;
  const Blocks& blocks = packed.blocks;
  WithPieces(packed.layout.pieces, [&]<int kPieces>(std::integral_constant<int, kPieces>) HWY_ATTR {
    ForEachLines<kTileRowsOfA>(
        x, prologue, x_row, count, blocks,
        [&](std::int64_t b, std::int64_t k, const float* lines, std::int64_t stride, std::int64_t columns)
            HWY_ATTR {
              const std::int64_t there = std::min(blocks.in - b * blocks.depth, blocks.depth) - k;
              for (std::int64_t i = 0; i < ceil_div(columns, kTileDepth) * kTileDepth; i += 16) {
                const auto present =
                    hn::FirstN(d, static_cast<std::size_t>(std::clamp<std::int64_t>(there - i, 0, 16)));
                for (std::int64_t r = 0; r < count; ++r)
                  StorePieces<kPieces>(hn::IfThenElseZero(present, hn::Load(d, lines + r * stride + i)),
                                       InTile(packed, b, row + r, k + i));
              }
            });
  });
}

// Columns [begin, begin + depth) of a strip of a bf16 weight of any strides as tiles, [step][16 pairs][16 features][2].
HWY_INLINE void PackWeightTiles(const TensorView& weight, std::int64_t strip, std::int64_t begin,
                                std::int64_t depth, std::uint16_t* to) {
  const WordTag du;
  const std::uint8_t* rows[16];
  std::int64_t k = 0;
  if (weight.stride(1) == 1) {
    // Pairs of neighbours are words.
    const std::int64_t first = strip * 16, count = std::min<std::int64_t>(16, weight.dim(0) - first);
    for (std::int64_t lane = 0; lane < 16; ++lane)
      rows[lane] = reinterpret_cast<const std::uint8_t*>(
          weight.as<const std::uint16_t>() + (first + std::min(lane, count - 1)) * weight.stride(0) + begin);
    const auto present = hn::FirstN(du, static_cast<std::size_t>(count));
    for (; k + kTileDepth <= depth; k += kTileDepth, to += kTileElements)
      for (std::int64_t quarter = 0; quarter < 4; ++quarter) {
        const RowWords words = LoadWords(rows, static_cast<std::size_t>(2 * k + 16 * quarter));
        for (std::int64_t w = 0; w < 4; ++w)
          hn::StoreU(hn::IfThenElseZero(present, words.w[w]), du,
                     reinterpret_cast<std::uint32_t*>(to + (4 * quarter + w) * 32));
      }
  }
  if (k == depth) return;
  std::memset(to, 0, static_cast<std::size_t>(ceil_div(depth - k, kTileDepth) * kTileBytes));
  const std::int64_t count = std::min<std::int64_t>(16, weight.dim(0) - strip * 16);
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const std::uint16_t* const row =
        weight.as<const std::uint16_t>() + (strip * 16 + lane) * weight.stride(0);
    for (std::int64_t i = 0; k + i < depth; ++i)
      to[i / 2 * 32 + lane * 2 + i % 2] = row[(begin + k + i) * weight.stride(1)];
  }
}

// hidden, which is tiles, too.
HWY_INLINE void FinishTiles(const GateEpilogue& e, std::int64_t pair, std::int64_t row_begin,
                            std::int64_t rows, const float* sums) {
  const F32Tag d;
  const std::int64_t column = pair * 16, block = column / e.hidden.blocks.depth,
                     k = column - block * e.hidden.blocks.depth;
  // Of the last step no pair may write the upper half.
  const bool alone = k % kTileDepth == 0 && column + 16 >= e.hidden.blocks.in;
  WithPieces(e.hidden.layout.pieces, [&]<int kPieces>(std::integral_constant<int, kPieces>) HWY_ATTR {
    for (std::int64_t r = 0; r < rows; ++r, sums += 32) {
      const auto gate = Activated(e.activation, hn::Load(d, sums));
      std::uint16_t* const to = InTile(e.hidden, block, row_begin + r, k);
      StorePieces<kPieces>(hn::Mul(gate, hn::Load(d, sums + 16)), to);
      if (alone) StorePieces<kPieces>(hn::Zero(d), to + 16);
    }
  });
}
template <class Epilogue>
HWY_INLINE void FinishTiles(const Epilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                            const float* sums) {
  Finish(e, pair, row_begin, rows, sums);
}

// Two strips in pieces.
struct TilePair {
  const char* at[2] = {};
  int pieces = 1;
};

HWY_INLINE int PiecesOf(const StripWeight& w, int otherwise) {
  if (w.layout.dtype == DType::bf16) return 1;
  return w.layout.dtype == DType::f16 ? 2 : otherwise;
}

template <class Epilogue>
HWY_NOINLINE TilePair MakeTilePair(const GemmItem& item, const Epilogue& epilogue, std::int64_t pair,
                                   std::int64_t k_begin, std::int64_t depth) {
  const StripOf sides[] = {StripAt(epilogue, pair, 0), StripAt(epilogue, pair, 1)};
  TilePair both;
  for (const StripOf& of : sides)
    if (of.weight != nullptr) both.pieces = std::max(both.pieces, PiecesOf(*of.weight, item.weight_pieces));
  for (int side = 0; side < 2; ++side) {
    const StripOf& of = sides[side];
    if (of.weight == nullptr) {
      both.at[side] = both.at[0];
      continue;
    }
    StripWeight w = *of.weight;
    const bool are_tiles = w.layout.dtype == DType::bf16 && w.packed != nullptr;
    if (are_tiles && both.pieces == 1) {
      both.at[side] = static_cast<const char*>(w.packed) +
                      (of.strip * ceil_div(item.a.blocks.in, kTileDepth) + k_begin / kTileDepth) * kTileBytes;
      continue;
    }
    std::uint16_t* const to =
        item.tiles + (2 * (pair - item.pair_begin) + side) * kMaxPieces * kMaxDepth * 16;
    both.at[side] = reinterpret_cast<const char*>(to);
    if (both.pieces == 1) {
      PackWeightTiles(w.layout, of.strip, k_begin, depth, to);
      continue;
    }
    if (are_tiles) w.packed = nullptr;
    const float* const strip = StripBlock(w, of.strip, k_begin, depth, item.strips);
    WithPieces(both.pieces, [&]<int kPieces>(std::integral_constant<int, kPieces>) HWY_ATTR {
      item.a.layout.pieces == 1 ? CutStrip<kPieces, Cut::same_sign>(strip, depth, to)
                                : CutStrip<kPieces, Cut::nearest>(strip, depth, to);
    });
  }
  return both;
}

// Loop order as Multiply()'s.
template <class Epilogue>
void MultiplyTiles(const GemmItem& item, const Epilogue& epilogue) {
  const F32Tag d;
  constexpr std::int64_t kRows = 2 * kTileRowsOfA, kColumns = 32;
  // Of the sums: a tile is stored whole.
  const std::int64_t item_rows = ceil_div(item.row_end - item.row_begin, kRows) * kRows;
  const PackedRows& a = item.a;
  const Blocks& blocks = a.blocks;
  const int pieces = a.layout.pieces;
  const TileRegisters registers;
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    const std::int64_t k_begin = block * blocks.depth, depth = std::min(blocks.depth, blocks.in - k_begin);
    const std::int64_t steps = ceil_div(depth, kTileDepth);
    TilePair strips[kMaxTilePairs];
    for (std::int64_t pair = item.pair_begin; pair < item.pair_end; ++pair)
      strips[pair - item.pair_begin] = MakeTilePair(item, epilogue, pair, k_begin, depth);
    for (std::int64_t chunk = item.row_begin; chunk < item.row_end; chunk += kChunkRows) {
      const std::int64_t chunk_end = std::min(item.row_end, chunk + kChunkRows);
      for (std::int64_t pair = item.pair_begin; pair < item.pair_end; ++pair) {
        const std::int64_t p = pair - item.pair_begin;
        const TilePair& b = strips[p];
        // Strips of one piece are multiplied in parts that stay in L1 for the rows of the chunk.
        const std::int64_t chain =
            pieces == 1 && b.pieces == 1 ? kStepsInL1 : std::max<std::int64_t>(steps, 1);
        const bool is_once = blocks.count == 1 && chain >= steps;
        // What is there is added to a finished sum of f32, as in MultiplyTile().
        const bool apart = block > 0 && pieces == kMaxPieces;
        for (std::int64_t s = 0; s < steps || s == 0; s += chain) {
          const std::int64_t some = std::min(chain, steps - s);
          const bool is_last = block == blocks.count - 1 && s + chain >= steps;
          for (std::int64_t row = chunk; row < chunk_end; row += kRows) {
            const std::int64_t rows = std::min(kRows, chunk_end - row);
            float* const sums =
                is_once ? item.sums : item.sums + (p * item_rows + row - item.row_begin) * kColumns;
            if (is_last) PrefetchFinish(epilogue, pair, row, rows);
            const char* const a0 = a.at(block, row) + s * pieces * kTileBytes;
            const char* const a1 =
                rows > kTileRowsOfA ? a.at(block, row + kTileRowsOfA) + s * pieces * kTileBytes : nullptr;
            const std::int64_t skip = s * b.pieces * kTileBytes;
            HWY_ALIGN float part[kRows * kColumns];
            multiply_tiles(a0, a1, pieces, b.at[0] + skip, b.at[1] + skip, b.pieces, some,
                           apart ? part : sums, kColumns, (block > 0 || s > 0) && !apart);
            for (std::int64_t i = 0; apart && i < rows * kColumns; i += 16)
              hn::Store(hn::Add(hn::Load(d, sums + i), hn::Load(d, part + i)), d, sums + i);
            if (is_last) FinishTiles(epilogue, pair, row, rows, sums);
          }
        }
      }
    }
  }
}

#else  // no matrix units: never called

template <class Epilogue>
void MultiplyTiles(const GemmItem&, const Epilogue&) {}
HWY_INLINE void PackTileRows(const TensorView&, const Prologue&, std::int64_t, std::int64_t, std::int64_t,
                             const PackedRows&) {}
HWY_INLINE void PackWeightTiles(const TensorView&, std::int64_t, std::int64_t, std::int64_t, std::uint16_t*) {
}

#endif

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
