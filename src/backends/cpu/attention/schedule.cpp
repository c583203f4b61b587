#include "backends/cpu/attention/schedule.h"

#include <algorithm>

namespace kf::cpu {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Chunks that one sequence may be cut into: many when the batch is small, and few when it fills the machine
// anyway, so that the partial results stay small.
std::int64_t max_chunks(std::int64_t batch) {
  return std::clamp<std::int64_t>(128 / std::max<std::int64_t>(batch, 1), 4, 32);
}

struct Heads {
  std::int64_t kv, group;
};
Heads heads_of(const AttentionParams& p) {
  const std::int64_t kv = p.k.dim(ops::kv_heads_axis(p.tables));
  return {kv, kv ? p.q.dim(-2) / kv : 0};
}

// Whether the K/V heads of a key lie nearer to each other than all keys of a head do.
bool heads_adjoin(const AttentionParams& p) {
  if (p.tables.paged()) return true;
  const int axis = ops::kv_heads_axis(p.tables);
  return p.k.stride(axis) < p.k.stride(axis - 1);
}

// K/V heads of one task for a sequence with `rows` query rows a head.
std::int64_t heads_of_task(const AttentionParams& p, const Heads& heads, std::int64_t rows) {
  if (rows > kStreamRows || !heads_adjoin(p)) return 1;
  return std::min(heads.kv, kRowBlock / rows);
}

// Keys of one chunk, where the longest sequence to be cut has `longest`.
std::int64_t chunk_keys(std::int64_t longest, std::int64_t batch, std::int64_t kv_heads) {
  const std::int64_t keys = std::max(ceil_div(longest, max_chunks(batch)), ceil_div(kMinChunkKeys, kv_heads));
  const std::int64_t unit = keys < kKeyBlock ? 32 : kKeyBlock;
  return ceil_div(keys, unit) * unit;
}

// Keys that the task's rows touch, times rows: the time it takes, in some unit.
std::int64_t weight(const AttentionTask& t) {
  return std::int64_t{t.key_end - t.key_begin} * (t.row_end - t.row_begin) * t.kv_heads;
}

}  // namespace

ScheduleBounds schedule_bounds(const AttentionParams& p, Split split) {
  const Heads heads = heads_of(p);
  const std::int64_t batch = ops::Sequences(p).size();
  const std::int64_t tokens = ops::is_dense(p.tables) ? p.q.dim(0) * p.q.dim(1) : p.q.dim(0);
  const std::int64_t rows = tokens * heads.group;
  const std::int64_t longest = ops::max_kv_len(p.tables, p.k);
  // A fixed split lies on multiples of its chunk, so that one more may be touched.
  const std::int64_t chunks = split == Split::fixed ? longest / kFixedChunkKeys + 2 : max_chunks(batch);
  const std::int64_t uncut = split == Split::fixed ? 0 : chunk_keys(0, batch, heads.kv);
  const bool may_split = !ops::is_dense(p.tables) || p.q.dim(1) * heads.group <= kSplitRows;
  ScheduleBounds bounds;
  bounds.tasks =
      static_cast<std::size_t>(heads.kv * (rows / kRowBlock + batch * (may_split ? chunks + 1 : 1)));
  if (may_split && rows > 0 && longest > uncut) {
    bounds.merges = static_cast<std::size_t>(heads.kv * batch);
    bounds.partial_rows = static_cast<std::size_t>(heads.kv * std::min(rows, batch * kSplitRows) * chunks);
  }
  return bounds;
}

Schedule make_schedule(const AttentionParams& p, Split split, AttentionTask* tasks, AttentionMerge* merges) {
  const ops::Sequences sequences(p);
  const Heads heads = heads_of(p);
  const std::int64_t batch = sequences.size();
  const ops::Window window(p);
  const auto is_split = [&](const ops::SequenceSpan& s) { return s.seqlen_q * heads.group <= kSplitRows; };
  const auto keys_of = [&](const ops::SequenceSpan& s) { return s.visible_keys(0, s.seqlen_q, window); };

  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < batch; ++b)
    if (const ops::SequenceSpan s = sequences[b]; is_split(s))
      longest = std::max(longest, keys_of(s).end - keys_of(s).begin);
  AttentionTask* task = tasks;
  AttentionMerge* merge = merges;
  std::int64_t partial_row = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const ops::SequenceSpan s = sequences[b];
    const std::int64_t rows = s.seqlen_q * heads.group;
    if (rows == 0) continue;
    const std::int64_t wide = heads_of_task(p, heads, rows);
    const std::int64_t keys = split == Split::fixed ? kFixedChunkKeys : chunk_keys(longest, batch, wide);
    const ops::KeyRange all = keys_of(s);
    // The end of the chunk that begins here.
    const auto end_of = [&](std::int64_t begin) {
      return std::min(split == Split::fixed ? (begin / keys + 1) * keys : begin + keys, all.end);
    };
    const std::int64_t cuts = split == Split::fixed ? ceil_div(all.end, keys) - all.begin / keys
                                                    : ceil_div(all.end - all.begin, keys);
    const std::int64_t chunks = is_split(s) && all.begin < all.end ? cuts : 1;
    for (std::int64_t kv_head = 0; kv_head < heads.kv; kv_head += wide) {
      AttentionTask t{};
      t.sequence = static_cast<std::int32_t>(b);
      t.kv_head = static_cast<std::int32_t>(kv_head);
      t.kv_heads = static_cast<std::int32_t>(std::min(wide, heads.kv - kv_head));
      t.partial_row = -1;
      if (chunks > 1) {
        const std::int64_t chunk_rows = t.kv_heads * rows;
        for (std::int32_t h = 0; h < t.kv_heads; ++h)
          *merge++ = {t.sequence,
                      t.kv_head + h,
                      static_cast<std::int32_t>(rows),
                      static_cast<std::int32_t>(chunks),
                      static_cast<std::int32_t>(chunk_rows),
                      partial_row + h * rows};
        t.row_end = static_cast<std::int32_t>(rows);
        for (std::int64_t begin = all.begin; begin < all.end; begin = end_of(begin)) {
          t.key_begin = static_cast<std::int32_t>(begin);
          t.key_end = static_cast<std::int32_t>(end_of(begin));
          t.partial_row = partial_row;
          partial_row += chunk_rows;
          *task++ = t;
        }
        continue;
      }
      for (std::int64_t begin = 0; begin < rows; begin += kRowBlock) {
        t.row_begin = static_cast<std::int32_t>(begin);
        t.row_end = static_cast<std::int32_t>(std::min<std::int64_t>(begin + kRowBlock, rows));
        const ops::KeyRange seen =
            s.visible_keys(t.row_begin / heads.group, (t.row_end - 1) / heads.group + 1, window);
        t.key_begin = static_cast<std::int32_t>(seen.begin);
        t.key_end = static_cast<std::int32_t>(seen.end);
        *task++ = t;
      }
    }
  }
  std::sort(tasks, task,
            [](const AttentionTask& a, const AttentionTask& b) { return weight(a) > weight(b); });
  return {{tasks, task}, {merges, merge}};
}

}  // namespace kf::cpu
