// How a batch is cut into tasks. A task is some query rows of one sequence and one K/V head, over a range of
// keys. Rows are the tokens times the query heads that share the K/V head, token by token: so K/V are read
// once for the group.
//
// A sequence of many rows is cut into blocks of rows. A sequence of few rows (decode) is cut into chunks of
// keys instead, whose partial results are merged afterwards. Where the K/V heads of a key lie near each other,
// such a task takes all of them, and so reads memory as it lies. Keys that none of a task's rows may attend are not
// in its range. All rows of a task see the same key blocks: where there is a block layout a task stays within a query block,
// and within a query head where heads have layouts of their own; keys then count as far as they are seen. Sizes depend on the batch and never on the number of threads; with a fixed split not even on the batch, so
// that a row's sums are taken in one order whatever else comes with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/key_blocks.h"

namespace kf::cpu {

inline constexpr int kRowBlock = 192;  // query rows of a task: a whole number of register tiles on any target
inline constexpr int kKeyBlock = 128;  // keys attended at a time
inline constexpr int kSplitRows = 16;  // up to so many rows a sequence is cut along its keys
inline constexpr int kStreamRows = 8;  // up to so many rows K/V are used as they lie: packing would not pay
inline constexpr int kMinChunkKeys = 256;  // of one head: below it, merging costs more than it gains

inline constexpr int kFixedChunkKeys = 1024;  // of a fixed split: whole key blocks

// Where a sequence of few rows is cut along its keys.
enum class Split : std::uint8_t { by_batch, fixed };

struct AttentionTask {
  std::int32_t sequence, kv_head, kv_heads;  // the first head, and how many
  std::int32_t query_head, query_heads;      // of the group of each: the first, and how many
  std::int32_t row_begin, row_end;           // of each head: row = token * query_heads + query head
  std::int32_t key_begin, key_end;
  std::int32_t keys;  // of these, as many as the layout lets the rows see
  std::int64_t
      partial_row;  // where the task's rows lie among the partial results; -1: straight to the output
};

// Partial results of one (sequence, K/V head): `rows` rows of each of `chunks` tasks, `chunk_stride` rows apart.
struct AttentionMerge {
  std::int32_t sequence, kv_head;
  std::int32_t query_head, query_heads;
  std::int32_t row_begin, rows, chunks, chunk_stride;
  std::int64_t partial_row;
};

// Upper bounds from shapes alone.
struct ScheduleBounds {
  std::size_t tasks = 0, merges = 0, partial_rows = 0;
};
ScheduleBounds schedule_bounds(const AttentionParams& p, Split split);

struct Schedule {
  std::span<AttentionTask> tasks;  // longest first
  std::span<AttentionMerge> merges;
};
// Fills memory for as many tasks and merges as schedule_bounds() says.
Schedule make_schedule(const AttentionParams& p, Split split, AttentionTask* tasks, AttentionMerge* merges);

}  // namespace kf::cpu
