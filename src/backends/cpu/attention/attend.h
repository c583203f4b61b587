// The work of one attention task, compiled for every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/attention/schedule.h"

namespace kf::cpu {

inline constexpr int kMaxHeadDim = 256;
// Query rows lie this far apart in scratch: a constant, so that a tile's rows are addressed by displacements,
// and not a power of two, so that they spread over the sets of the cache.
inline constexpr int kQueryStride = kMaxHeadDim + 16;
inline constexpr int kOutStride = kMaxHeadDim + 16;

// Keys of a strip of values, one more than there are, so that the strips of a key do not fall into one set of the cache.
inline constexpr int kValueStrip = kKeyBlock + 1;

// Neighbouring keys among those that are attended at a time: they take columns [column, column + count) of the scores.
struct KeyRun {
  int key, column, count;
};

// Memory of one thread. A block of keys and values is converted and packed once for all rows of the task,
// and everything together stays within the second-level cache.
struct AttentionScratch {
  alignas(64) float q[kRowBlock * kQueryStride];    // scaled by softmax_scale * log2(e)
  alignas(64) float scores[kRowBlock * kKeyBlock];  // then the probabilities
  alignas(64) float out[kRowBlock * kOutStride];    // not yet divided by the row's sum
  alignas(64) float keys[kKeyBlock * kMaxHeadDim];  // strips of keys: [strip][head_dim][keys of the strip]
  // Strips of dimensions: [strip][key][dimensions of the strip].
  alignas(64) float values[kValueStrip * kMaxHeadDim];
  // bf16 as tiles of matrix units (matrix-inl.h).
  alignas(64) std::uint16_t query_tiles[kRowBlock * kMaxHeadDim];
  alignas(64) std::uint16_t key_tiles[kKeyBlock * kMaxHeadDim];
  alignas(64) std::uint16_t value_tiles[kKeyBlock * kMaxHeadDim];
  alignas(64) std::uint16_t probability_tiles[2 * 32 * kKeyBlock];  // two pieces
  alignas(64) float row_max[kRowBlock];                             // of the scores so far, in units of log2
  alignas(64) float row_sum[kRowBlock];
  alignas(64) float rescale[kRowBlock];  // what the last block multiplied the row's sums by
  std::int32_t key_begin[kRowBlock];     // the keys that the row may attend: [key_begin, key_end)
  std::int32_t key_end[kRowBlock];
  std::int32_t first[kRowBlock];  // of the block's columns: [first, limit)
  std::int32_t limit[kRowBlock];
  KeyRun runs[kKeyBlock];  // the block's keys: one run, or what a block layout leaves of more
  int num_runs, columns;
  ops::KeyRange following;  // the run of keys after these
};

// Partial results of split sequences: rows of unnormalised output, and (max, sum) a row.
struct AttentionPartials {
  float* out = nullptr;    // [row][head_dim of v]
  float* stats = nullptr;  // [row][2]
};

void attend(const AttentionParams& p, const AttentionTask& task, const AttentionPartials& partials,
            AttentionScratch& scratch);
void merge_partials(const AttentionParams& p, const AttentionMerge& merge, const AttentionPartials& partials);

}  // namespace kf::cpu
