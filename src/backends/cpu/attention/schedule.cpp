#include "backends/cpu/attention/schedule.h"

#include <algorithm>

namespace kf::cpu {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Chunks that one sequence may be cut into: many when the batch is small, and few when it fills the machine
// anyway, so that the partial results stay small.
std::int64_t max_chunks(std::int64_t batch, std::int64_t num_kv_heads) {
  return std::clamp<std::int64_t>(256 / std::max<std::int64_t>(batch * num_kv_heads, 1), 4, 32);
}

struct Heads {
  std::int64_t kv, group;
};
Heads heads_of(const AttentionParams& p) {
  const std::int64_t kv = p.k.dim(ops::kv_heads_axis(p.tables));
  return {kv, kv ? p.q.dim(-2) / kv : 0};
}

// Keys that the task's rows touch, times rows: the time it takes, in some unit.
std::int64_t weight(const AttentionTask& t) {
  return std::int64_t{t.key_end - t.key_begin} * (t.row_end - t.row_begin);
}

}  // namespace

ScheduleBounds schedule_bounds(const AttentionParams& p) {
  const Heads heads = heads_of(p);
  const std::int64_t batch = ops::Sequences(p).size();
  const std::int64_t tokens = ops::is_dense(p.tables) ? p.q.dim(0) * p.q.dim(1) : p.q.dim(0);
  const std::int64_t rows = tokens * heads.group;
  const std::int64_t chunks = max_chunks(batch, heads.kv);
  const bool may_split = !ops::is_dense(p.tables) || p.q.dim(1) * heads.group <= kSplitRows;
  ScheduleBounds bounds;
  bounds.tasks =
      static_cast<std::size_t>(heads.kv * (rows / kRowBlock + batch * (may_split ? chunks + 1 : 1)));
  if (may_split && ops::max_kv_len(p.tables, p.k) > kMinChunkKeys) {
    bounds.merges = static_cast<std::size_t>(heads.kv * batch);
    bounds.partial_rows = static_cast<std::size_t>(heads.kv * std::min(rows, batch * kSplitRows) * chunks);
  }
  return bounds;
}

Schedule make_schedule(const AttentionParams& p, AttentionTask* tasks, AttentionMerge* merges) {
  const ops::Sequences sequences(p);
  const Heads heads = heads_of(p);
  const std::int64_t batch = sequences.size();
  const auto is_split = [&](const ops::SequenceSpan& s) { return s.seqlen_q * heads.group <= kSplitRows; };

  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < batch; ++b)
    if (const ops::SequenceSpan s = sequences[b]; is_split(s)) longest = std::max(longest, s.kv_len);
  const std::int64_t even = ceil_div(longest, max_chunks(batch, heads.kv));
  const std::int64_t chunk_keys =
      std::max<std::int64_t>(kMinChunkKeys, ceil_div(even, kKeyBlock) * kKeyBlock);

  AttentionTask* task = tasks;
  AttentionMerge* merge = merges;
  std::int64_t partial_row = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const ops::SequenceSpan s = sequences[b];
    const std::int64_t rows = s.seqlen_q * heads.group;
    if (rows == 0) continue;
    const std::int64_t chunks = is_split(s) ? std::max<std::int64_t>(ceil_div(s.kv_len, chunk_keys), 1) : 1;
    for (std::int64_t kv_head = 0; kv_head < heads.kv; ++kv_head) {
      AttentionTask t{};
      t.sequence = static_cast<std::int32_t>(b);
      t.kv_head = static_cast<std::int32_t>(kv_head);
      t.partial_row = -1;
      if (chunks > 1) {
        *merge++ = {t.sequence, t.kv_head, static_cast<std::int32_t>(rows), static_cast<std::int32_t>(chunks),
                    partial_row};
        t.row_end = static_cast<std::int32_t>(rows);
        for (std::int64_t begin = 0; begin < s.kv_len; begin += chunk_keys) {
          t.key_begin = static_cast<std::int32_t>(begin);
          t.key_end = static_cast<std::int32_t>(std::min(begin + chunk_keys, s.kv_len));
          t.partial_row = partial_row;
          partial_row += rows;
          *task++ = t;
        }
        continue;
      }
      for (std::int64_t begin = 0; begin < rows; begin += kRowBlock) {
        t.row_begin = static_cast<std::int32_t>(begin);
        t.row_end = static_cast<std::int32_t>(std::min<std::int64_t>(begin + kRowBlock, rows));
        t.key_end = static_cast<std::int32_t>(s.visible_keys((t.row_end - 1) / heads.group, p.causal));
        *task++ = t;
      }
    }
  }
  std::sort(tasks, task,
            [](const AttentionTask& a, const AttentionTask& b) { return weight(a) > weight(b); });
  return {{tasks, task}, {merges, merge}};
}

}  // namespace kf::cpu
