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
  std::int64_t task;  // query heads of a group that a task takes: all, or one where each has its own layout
};
Heads heads_of(const AttentionParams& p) {
  const std::int64_t kv = p.k.dim(ops::kv_heads_axis(p.tables)), group = kv ? p.q.dim(-2) / kv : 0;
  const TensorView& layout = p.sparsity.block_layout;
  return {kv, group, layout.present() && layout.dim(1) > kv ? 1 : group};
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
  if (p.sparsity.block_layout.present() && p.sparsity.block_layout.dim(1) > 1) return 1;
  return std::min(heads.kv, kRowBlock / rows);
}

// Keys of the shortest chunk.
std::int64_t min_chunk_keys(std::int64_t kv_heads) { return ceil_div(kMinChunkKeys, kv_heads); }

// Keys of one chunk, where the longest sequence to be cut has `longest`.
std::int64_t chunk_keys(std::int64_t longest, std::int64_t batch, std::int64_t kv_heads) {
  const std::int64_t keys = std::max(ceil_div(longest, max_chunks(batch)), min_chunk_keys(kv_heads));
  if (keys >= kKeyBlock) return ceil_div(keys, kKeyBlock) * kKeyBlock;
  // An even number of chunks of one length, whose scores are summed four keys at a time.
  const std::int64_t chunks = std::max<std::int64_t>(longest / keys / 2 * 2, 1);
  return ceil_div(ceil_div(longest, chunks), 4) * 4;
}

// Keys that the task's rows touch, times rows: the time it takes, in some unit.
std::int64_t weight(const AttentionTask& t) {
  return std::int64_t{t.keys} * (t.row_end - t.row_begin) * t.kv_heads;
}

// Fills the lists of make_schedule(). A unit is what is scheduled as one: the query tokens of a sequence, or of one of its
// query blocks, for some heads.
class Scheduler {
 public:
  Scheduler(const AttentionParams& p, Split split, AttentionTask* tasks, AttentionMerge* merges)
      : p_(p), split_(split), sequences_(p), window_(p), heads_(heads_of(p)), tasks_(tasks), merges_(merges) {
    for (std::int64_t b = 0; b < sequences_.size(); ++b)
      if (const ops::SequenceSpan s = sequences_[b]; is_split(s))
        for_each_unit(s, [&](const Unit& u) { longest_ = std::max(longest_, u.blocks.count(u.keys)); });
    task_ = tasks_, merge_ = merges_;
    for (std::int64_t b = 0; b < sequences_.size(); ++b) {
      const ops::SequenceSpan s = sequences_[b];
      for_each_unit(s, [&](const Unit& u) {
        if (is_split(s))
          cut_keys(u);
        else
          cut_rows(s, u);
      });
    }
    std::sort(tasks_, task_,
              [](const AttentionTask& a, const AttentionTask& b) { return weight(a) > weight(b); });
  }

  Schedule schedule() const { return {{tasks_, task_}, {merges_, merge_}}; }

 private:
  struct Unit {
    AttentionTask task;                 // all its rows, and no keys yet
    ops::KeyRange keys;                 // in the windows of its rows
    ops::KeyBlocks blocks;              // of these, what its rows see
    std::int64_t kv_heads_of_sequence;  // that one task takes
  };

  bool is_split(const ops::SequenceSpan& s) const { return s.seqlen_q * heads_.group <= kSplitRows; }

  template <class F>
  void for_each_unit(const ops::SequenceSpan& s, const F& f) const {
    const std::int64_t block_tokens = ops::query_block_tokens(p_.sparsity, s.seqlen_q);
    for (std::int64_t begin = 0; begin < s.seqlen_q; begin += block_tokens) {
      const std::int64_t end = std::min(begin + block_tokens, s.seqlen_q);
      const std::int64_t rows = (end - begin) * heads_.task;
      if (rows == 0) continue;
      const ops::KeyRange keys = s.visible_keys(begin, end, window_);
      const std::int64_t wide = heads_of_task(p_, heads_, rows);
      for (std::int64_t kv_head = 0; kv_head < heads_.kv; kv_head += wide)
        for (std::int64_t query_head = 0; query_head < heads_.group; query_head += heads_.task) {
          AttentionTask t{};
          t.sequence = static_cast<std::int32_t>(s.index);
          t.kv_head = static_cast<std::int32_t>(kv_head);
          t.kv_heads = static_cast<std::int32_t>(std::min(wide, heads_.kv - kv_head));
          t.query_head = static_cast<std::int32_t>(query_head);
          t.query_heads = static_cast<std::int32_t>(heads_.task);
          t.row_begin = static_cast<std::int32_t>(begin * heads_.task);
          t.row_end = static_cast<std::int32_t>(end * heads_.task);
          t.partial_row = -1;
          f(Unit{t, keys,
                 ops::KeyBlocks(p_.sparsity, s.index, ops::query_block(p_.sparsity, begin),
                                kv_head * heads_.group + query_head, p_.q.dim(-2)),
                 wide});
        }
    }
  }

  void push(const Unit& u, AttentionTask t, ops::KeyRange keys) {
    t.key_begin = static_cast<std::int32_t>(keys.begin);
    t.key_end = static_cast<std::int32_t>(keys.end);
    t.keys = static_cast<std::int32_t>(u.blocks.count(keys));
    *task_++ = t;
  }

  // Few rows: chunks of keys, and what merges them.
  void cut_keys(const Unit& u) {
    const std::int64_t keys = split_ == Split::fixed
                                  ? kFixedChunkKeys
                                  : chunk_keys(longest_, sequences_.size(), u.kv_heads_of_sequence);
    // The end of the chunk that begins here.
    const auto end_of = [&](std::int64_t begin) {
      if (split_ == Split::fixed) return std::min((begin / keys + 1) * keys, u.keys.end);
      // Groups of which the largest scores are kept stay whole.
      const std::int64_t end = u.blocks.after({begin, u.keys.end}, keys),
                         m = std::max<std::int64_t>(p_.sparsity.keep_m, 1);
      return std::min(ceil_div(end, m) * m, u.keys.end);
    };
    if (u.keys.begin >= u.keys.end || end_of(u.keys.begin) == u.keys.end) return push(u, u.task, u.keys);
    const std::int32_t rows = u.task.row_end - u.task.row_begin, chunk_rows = u.task.kv_heads * rows;
    const std::int64_t first = partial_row_;
    std::int32_t chunks = 0;
    for (std::int64_t begin = u.keys.begin; begin < u.keys.end; begin = end_of(begin), ++chunks) {
      AttentionTask t = u.task;
      t.partial_row = partial_row_;
      partial_row_ += chunk_rows;
      push(u, t, {begin, end_of(begin)});
    }
    for (std::int32_t h = 0; h < u.task.kv_heads; ++h)
      *merge_++ = {u.task.sequence,
                   u.task.kv_head + h,
                   u.task.query_head,
                   u.task.query_heads,
                   u.task.row_begin,
                   rows,
                   chunks,
                   chunk_rows,
                   first + std::int64_t{h} * rows};
  }

  // Many: blocks of rows.
  void cut_rows(const ops::SequenceSpan& s, const Unit& u) {
    for (std::int32_t begin = u.task.row_begin; begin < u.task.row_end; begin += kRowBlock) {
      AttentionTask t = u.task;
      t.row_begin = begin;
      t.row_end = std::min(begin + kRowBlock, u.task.row_end);
      push(u, t, s.visible_keys(t.row_begin / heads_.task, (t.row_end - 1) / heads_.task + 1, window_));
    }
  }

  const AttentionParams& p_;
  const Split split_;
  const ops::Sequences sequences_;
  const ops::Window window_;
  const Heads heads_;
  AttentionTask *const tasks_, *task_ = nullptr;
  AttentionMerge *const merges_, *merge_ = nullptr;
  std::int64_t longest_ = 0;  // keys of a unit that is cut along them
  std::int64_t partial_row_ = 0;
};

}  // namespace

ScheduleBounds schedule_bounds(const AttentionParams& p, Split split) {
  const Heads heads = heads_of(p);
  if (heads.task == 0) return {};
  const std::int64_t batch = ops::Sequences(p).size();
  const std::int64_t tokens = ops::is_dense(p.tables) ? p.q.dim(0) * p.q.dim(1) : p.q.dim(0);
  const std::int64_t longest = ops::max_kv_len(p.tables, p.k);
  // A fixed split lies on multiples of its chunk, so that one more may be touched.
  const std::int64_t chunks = split == Split::fixed ? longest / kFixedChunkKeys + 2 : max_chunks(batch);
  const std::int64_t uncut = split == Split::fixed ? 0 : min_chunk_keys(heads.kv);
  const bool may_split = !ops::is_dense(p.tables) || p.q.dim(1) * heads.group <= kSplitRows;
  // Query blocks of all sequences, and of those that are split; sets of query heads.
  const std::int64_t block = ops::query_block_tokens(p.sparsity, 0),
                     units = block ? tokens / block + batch : batch,
                     split_units = batch * (block ? ceil_div(kSplitRows, block) : 1),
                     sets = heads.kv * (heads.group / heads.task);
  ScheduleBounds bounds;
  bounds.tasks = static_cast<std::size_t>(
      sets * (tokens * heads.task / kRowBlock + units + (may_split ? split_units * chunks : 0)));
  if (may_split && tokens * heads.group > 0 && longest > uncut) {
    bounds.merges = static_cast<std::size_t>(sets * split_units);
    bounds.partial_rows =
        static_cast<std::size_t>(heads.kv * std::min(tokens * heads.group, batch * kSplitRows) * chunks);
  }
  return bounds;
}

Schedule make_schedule(const AttentionParams& p, Split split, AttentionTask* tasks, AttentionMerge* merges) {
  return Scheduler(p, split, tasks, merges).schedule();
}

}  // namespace kf::cpu
