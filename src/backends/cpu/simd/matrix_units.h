// The processor's matrix units: AMX, whose tile registers of 16 rows of 64 bytes multiply bf16 and sum in f32 (Intel 64 and IA-32
// Architectures Software Developer's Manual, TDPBF16PS).
//
// What is not bf16 is cut into *pieces* of bf16 that add up to it, each the nearest to what those before it leave: three hold the 24
// significant bits of an f32, two the 11 of an f16. Of the products of pieces those are taken that count for the result: of three by
// three the six largest, of the others each is below 2^-26 of the product; of two by two, three, and the fourth is below 2^-18.
#pragma once

#include <cstdint>

#include "kf/dtype.h"

namespace kf::cpu {

// Whether this process may use them: the processor has AMX for bf16 and the system grants the tile registers, which it is asked for
// once.
bool has_matrix_units();

inline constexpr std::int64_t kTileRowsOfA = 16;  // of a tile of A, and features of a tile of B
inline constexpr std::int64_t kTileDepth = 32;    // of the reduction, to a step
inline constexpr std::int64_t kTileBytes = 1024;
inline constexpr int kMaxPieces = 3;
// Pieces of activations that count for their dtype: a 16-bit float's own, of f32 all.
inline int pieces_of(DType x) { return x == DType::bf16 ? 1 : x == DType::f16 ? 2 : kMaxPieces; }

// A thread's tile registers, set up for these functions while the object lives.
class TileRegisters {
 public:
  TileRegisters();
  ~TileRegisters();
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// c = [a0; a1] @ [b0 | b1], or that added to c: 32 x 32, rows `stride` floats apart; 16 x 32 where a1 is null.
//   a0, a1   [step][piece][16 rows][32]
//   b0, b1   [step][piece][16 pairs of the reduction][16 features][2]
void multiply_tiles(const void* a0, const void* a1, int pieces_a, const void* b0, const void* b1,
                    int pieces_b, std::int64_t steps, float* c, std::int64_t stride, bool accumulate);

// Sixteen rows as they lie in memory, of bf16 and `stride` bytes apart, times up to sixteen columns.
//   x      [step][piece][16 pairs of the reduction][16 columns][2]
//   c      [2][16 rows][16 columns], the sum of the two being the product: of even and odd steps, or of the first piece and the others
//   ahead  rows of the same stride that are read next
void multiply_rows(const void* rows, std::int64_t stride, const void* x, int pieces, std::int64_t steps,
                   float* c, const void* ahead);

}  // namespace kf::cpu
