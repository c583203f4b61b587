// Few tokens on the processor's matrix units (simd/matrix_units.h): sixteen rows of a bf16 weight as they lie are a tile, and the tokens,
// cut into pieces of bf16, are the columns that it is multiplied with. So a weight is read once for all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/gemv/dot.h"

namespace kf::cpu {

// Rows that are multiplied at a time, and the most tokens.
inline constexpr std::int64_t kRowsOfTile = 16, kTokensOfTile = 16;

// What GemvInput::tiles takes.
std::size_t token_tile_bytes(std::int64_t in, int pieces);

// Fills input.tiles of all tokens from input.values, elements [begin, end). Threads may share the elements where they are parted
// at multiples of sixteen; what ends with the last one fills its step.
void fill_token_tiles(const GemvInput& input, std::int64_t begin, std::int64_t end);

// dot_rows() of a bf16 weight and tokens with tiles.
void dot_rows_of_tiles(const TensorView& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                       float* sums, std::size_t sums_stride);

}  // namespace kf::cpu
