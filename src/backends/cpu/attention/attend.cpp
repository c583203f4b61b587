#include "backends/cpu/attention/attend.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <type_traits>

#include "backends/cpu/cpu_backend.h"
#include "core/half.h"

#include "backends/cpu/simd/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/attend.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "backends/cpu/attention/keep_largest-inl.h"
#include "backends/cpu/attention/matrix-inl.h"
#include "backends/cpu/attention/online_softmax-inl.h"
#include "backends/cpu/attention/score_rows-inl.h"
#include "backends/cpu/attention/stream-inl.h"
#include "backends/cpu/attention/tile-inl.h"
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Scores are in units of log2.
constexpr float kLog2E = std::numbers::log2e_v<float>;

// A task with what its steps need.
struct Work {
  const AttentionParams& p;
  const AttentionTask& task;
  const ops::Sequences sequences;
  const ops::SequenceSpan span;
  const int head_dim, value_dim, group;
  const int head_rows, rows;  // of one K/V head, and of all
  // Where the largest scores of a group are kept: scores then are products of the queries as they come, scaled and biased
  // in their own unit, so that what is equal stays so, and in units of log2 only afterwards.
  const bool keeps;
  const float score_factor, unit;
  const bool on_matrix_units;

  Work(const AttentionParams& params, const AttentionTask& t, bool has_matrix = false)
      : p(params),
        task(t),
        sequences(params),
        span(sequences[t.sequence]),
        head_dim(static_cast<int>(params.q.dim(-1))),
        value_dim(static_cast<int>(params.v.dim(-1))),
        group(static_cast<int>(params.q.dim(-2) / params.k.dim(ops::kv_heads_axis(params.tables)))),
        head_rows(t.row_end - t.row_begin),
        rows(t.kv_heads * head_rows),
        keeps(params.sparsity.keep_m > 0),
        score_factor(static_cast<float>(ops::score_scale(params.softmax_scale, head_dim))),
        unit(keeps ? 1.0f : kLog2E),
        on_matrix_units(has_matrix && head_rows > kStreamRows && p.q.dtype == DType::bf16 &&
                        p.k.dtype == DType::bf16 && p.v.dtype == DType::bf16) {}

  std::int64_t token(int row) const { return (task.row_begin + row % head_rows) / task.query_heads; }
  std::int64_t head(int row) const {
    return (task.kv_head + row / head_rows) * std::int64_t{group} + task.query_head +
           (task.row_begin + row % head_rows) % task.query_heads;
  }
};

// Queries as f32, multiplied by the scale of the scores (not where scores are chosen among); rows up to the next whole tile are zeros.
void LoadQueries(const Work& w, AttentionScratch& s) {
  const double scale = ops::score_scale(w.p.softmax_scale, w.head_dim);
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, w.keeps ? 1.0f : static_cast<float>(scale * std::numbers::log2e));
  const ops::TokenRows q_rows = w.sequences.token_rows(w.p.q, w.span);
  with_activation_type(w.p.q.dtype, [&]<class T>(std::type_identity<T>) {
    for (int r = 0; r < w.rows; ++r) {
      const T* const source = w.p.q.as<T>() + q_rows.offset(w.token(r), w.head(r));
#if HWY_TARGET <= HWY_AVX3
      if constexpr (std::is_same_v<T, Bf16>)
        if (w.on_matrix_units) {
          PlaceQuery(source, r, w.head_dim, s);
          continue;
        }
#endif
      float* const to = s.q + r * kQueryStride;
      ForEachVector(w.head_dim, [&](std::int64_t i, auto extent) {
        hn::Store(hn::Mul(LoadF32(d, source + i, extent), factor), d, to + i);
      });
    }
  });
  // Rows that fill up the last tile see what its last row sees: neither end of what they see goes back.
  const ops::Window window(w.p);
  const int padded = RoundUp(w.rows, kTile);
  for (int r = 0; r < padded; ++r) {
    const ops::KeyRange keys = w.span.visible_keys(w.token(std::min(r, w.rows - 1)), window);
    s.key_begin[r] = static_cast<std::int32_t>(keys.begin);
    s.key_end[r] = static_cast<std::int32_t>(keys.end);
    if (r >= w.rows && !w.on_matrix_units) std::fill_n(s.q + r * kQueryStride, w.head_dim, 0.0f);
  }
}

void ClearSums(const Work& w, AttentionScratch& s) {
  const int padded = RoundUp(w.rows, kTile);
  std::fill_n(s.row_max, kRowBlock, -kInfinity);
  std::fill_n(s.row_sum, kRowBlock, 0.0f);
  for (int r = 0; r < padded; ++r)
    std::fill_n(s.out + r * kOutStride, RoundUp(w.value_dim, StripWidth()), 0.0f);
}

// The soft cap and the biases of the scores, and the choice among them.
void BiasScores(const Work& w, AttentionScratch& s) {
  const AttentionParams& p = w.p;
  const ops::TokenRows mask_rows =
      p.attn_mask.present() ? w.sequences.mask_rows(p.attn_mask, w.span) : ops::TokenRows{};
  for (int r = 0; r < w.rows; ++r) {
    const std::int64_t token = w.token(r), head = w.head(r);
    for (int i = 0; i < s.num_runs; ++i) {
      const KeyRun& run = s.runs[i];
      const int first = std::max(s.first[r], run.column),
                count = std::min(s.limit[r], run.column + run.count) - first;
      if (count <= 0) continue;
      float* const row = s.scores + r * kKeyBlock + first;
      const std::int64_t key = run.key + (first - run.column);
      if (w.keeps) ScaleRow(row, count, w.score_factor);
      if (p.softcap > 0.0f) CapRow(row, count, p.softcap * w.unit);
      if (p.alibi_slopes.present())
        AddSlope(row, count, ops::alibi_slope(p.alibi_slopes, w.span.index, head) * w.unit,
                 w.span.own_key(token) - key);
      if (p.attn_mask.present())
        ApplyMask(row, count, p.attn_mask, mask_rows.offset(token, head) + key, w.unit);
      if (w.keeps)
        KeepLargest(row, count, static_cast<int>(key % p.sparsity.keep_m),
                    static_cast<int>(p.sparsity.keep_n), static_cast<int>(p.sparsity.keep_m), kLog2E);
    }
  }
}

// The next keys of the task from `key` on that its rows may see, as many as fit a block: their runs, and of their columns
// what each row sees. Returns the key after them. The keys of a row's window stay neighbours, since columns are in the order
// of the keys.
int GatherKeys(const Work& w, const ops::KeyBlocks& blocks, int key, AttentionScratch& s) {
  s.num_runs = s.columns = 0;
  ops::KeyRange run = blocks.next_run({key, w.task.key_end});
  while (run.begin < run.end && s.columns < kKeyBlock) {
    int count = static_cast<int>(std::min<std::int64_t>(run.end - run.begin, kKeyBlock - s.columns));
    // Groups among which scores are chosen stay whole; a run's begin with it.
    if (w.keeps && run.begin + count < run.end)
      count -= static_cast<int>((run.begin + count) % w.p.sparsity.keep_m);
    if (count <= 0) break;
    s.runs[s.num_runs++] = {static_cast<int>(run.begin), s.columns, count};
    s.columns += count;
    run.begin += count;
    if (run.begin == run.end) run = blocks.next_run({run.end, w.task.key_end});
  }
  s.following = run;
  const int padded = RoundUp(w.rows, kTile);
  for (int i = 0; i < s.num_runs; ++i) {
    const auto [begin, column, count] = s.runs[i];
    for (int r = 0; r < padded; ++r) {
      const int first = std::clamp(s.key_begin[r] - begin, 0, count),
                limit = std::clamp(s.key_end[r] - begin, 0, count);
      s.first[r] = i > 0 ? s.first[r] + first : first;
      s.limit[r] = i > 0 ? s.limit[r] + limit : limit;
    }
  }
  return static_cast<int>(run.begin);
}

#if HWY_TARGET <= HWY_AVX3
// The same on matrix units.
void AttendOnMatrixUnits(const Work& w, const KvSource<Bf16>& k, const KvSource<Bf16>& v, bool biased,
                         AttentionScratch& s) {
  const std::int64_t head = w.task.kv_head;
  const std::uint8_t* rows[kKeyBlock];
  PlaceRows(k, head, w.head_dim, s, rows);
  KeysToTiles(rows, s.columns, w.head_dim, s.key_tiles);
  MatrixScores(w.rows, w.head_dim, w.keeps ? 1.0f : w.score_factor * kLog2E, s);
  if (biased) BiasScores(w, s);
  SoftmaxStep(w.rows, RoundUp(s.columns, StripWidth()), s);
  PlaceRows(v, head, w.value_dim, s, rows);
  if (ValuesToTiles(rows, s.columns, w.value_dim, s.value_tiles)) return MatrixValues(w.rows, w.value_dim, s);
  // A zero probability does not keep out an infinity or a NaN: row by row where not all rows see them.
  for (int i = 0; i < s.num_runs; ++i) PackValues(v, head, s.runs[i], w.value_dim, s.values);
  TileValues(RoundUp(w.rows, kTile), w.value_dim, s);
}
#endif

// The gathered keys attended by all rows.
template <class T>
void AttendBlock(const Work& w, const KvSource<T>& k, const KvSource<T>& v, AttentionScratch& s) {
  const int padded = RoundUp(w.rows, kTile);
  const bool biased = w.keeps || w.p.softcap > 0.0f || w.p.alibi_slopes.present() || w.p.attn_mask.present();
#if HWY_TARGET <= HWY_AVX3
  if constexpr (std::is_same_v<T, Bf16>)
    if (w.on_matrix_units) return AttendOnMatrixUnits(w, k, v, biased, s);
#endif
  const int columns = RoundUp(s.columns, StripWidth());
  const std::int64_t head = w.task.kv_head;
  if (w.head_rows <= kStreamRows) {
    const auto range = [&](int i) { return ops::KeyRange{s.runs[i].key, s.runs[i].key + s.runs[i].count}; };
    // Run i of a source; after the last, a range of another.
    const auto block = [&](const KvSource<T>& source, int i, const KvSource<T>& other, ops::KeyRange after) {
      const KeyRun& run = s.runs[i];
      const bool last = i + 1 == s.num_runs;
      const ops::KeyRange next = last ? after : range(i + 1);
      return Block<T>{head,       w.task.kv_heads,       run.key,    run.key + run.count,
                      run.column, last ? other : source, next.begin, next.end};
    };
    WithStreamShape(w.head_rows, w.head_dim,
                    [&]<class D, int kRows>(D d, std::integral_constant<int, kRows>) {
                      for (int i = 0; i < s.num_runs; ++i)
                        StreamScores<kRows>(d, k, block(k, i, v, range(0)), w.head_dim, s);
                    });
    if (biased) BiasScores(w, s);
    SoftmaxStep(w.rows, columns, s);
    RescaleSums(w.rows, w.value_dim, s);
    WithStreamShape(w.head_rows, w.value_dim,
                    [&]<class D, int kRows>(D d, std::integral_constant<int, kRows>) {
                      for (int i = 0; i < s.num_runs; ++i)
                        StreamValues<kRows>(d, v, block(v, i, k, s.following), w.value_dim, s);
                    });
  } else {
    for (int i = 0; i < s.num_runs; ++i) PackKeys(k, head, s.runs[i], w.head_dim, s.keys);
    PadKeys(s.columns, w.head_dim, s.keys);
    TileScores(padded, s.columns, w.head_dim, s);
    if (biased) BiasScores(w, s);
    SoftmaxStep(padded, columns, s);
    for (int i = 0; i < s.num_runs; ++i) PackValues(v, head, s.runs[i], w.value_dim, s.values);
    TileValues(padded, w.value_dim, s);
  }
}

// The row's output and natural-log sum of exponentials, from its unnormalised sums in units of log2.
void WriteRow(const Work& w, std::int64_t token, std::int64_t head, const float* sums, float row_max,
              float row_sum) {
  const hn::ScalableTag<float> d;
  // A row that attends nothing, or only scores of -inf, has no sum: zeros, whatever the values were.
  const bool nothing = row_sum == 0.0f;
  float weight = 1.0f;  // of the sums, beside the sink's
  if (w.p.sinks.present()) {
    const float sink = w.p.sinks.as<float>()[head * w.p.sinks.stride(0)] * kLog2E;
    const float largest = std::max(row_max, sink);
    if (largest != -kInfinity) {
      weight = std::exp2(row_max - largest);
      row_sum = row_sum * weight + std::exp2(sink - largest);
      row_max = largest;
    }
  }
  const auto factor = hn::Set(d, weight / row_sum);
  const std::int64_t offset = w.sequences.token_rows(w.p.out, w.span).offset(token, head);
  with_activation_type(w.p.out.dtype, [&]<class T>(std::type_identity<T>) {
    T* const out = w.p.out.as<T>() + offset;
    ForEachVector(w.value_dim, [&](std::int64_t i, auto extent) {
      const auto value = nothing ? hn::Zero(d) : hn::Mul(LoadF32(d, sums + i, extent), factor);
      StoreF32(d, value, out + i, extent);
    });
  });
  if (w.p.lse.present())
    w.p.lse.as<float>()[w.sequences.head_major_rows(w.p.lse, w.span).offset(token, head)] =
        static_cast<float>((static_cast<double>(row_max) + std::log2(static_cast<double>(row_sum))) *
                           std::numbers::ln2);
}

void Attend(const AttentionParams& p, const AttentionTask& task, const AttentionPartials& partials,
            bool has_matrix, AttentionScratch& s) {
  const Work w(p, task, has_matrix);
  std::optional<TileRegisters> registers;
  if (w.on_matrix_units) registers.emplace();
  LoadQueries(w, s);
  ClearSums(w, s);
  const ops::KeyRows key_rows = w.sequences.key_rows(p.k, w.span),
                     value_rows = w.sequences.key_rows(p.v, w.span);
  const KvScales key_scales(w.sequences, w.span, p.k, p.k_quantization),
      value_scales(w.sequences, w.span, p.v, p.v_quantization);
  const ops::KeyBlocks blocks(p.sparsity, task.sequence, ops::query_block(p.sparsity, w.token(0)), w.head(0),
                              p.q.dim(-2));
  with_kv_type(p.k.dtype, [&]<class T>(std::type_identity<T>) {
    const KvSource<T> k{key_rows, p.k.as<T>(), key_scales}, v{value_rows, p.v.as<T>(), value_scales};
    for (int key = task.key_begin; key < task.key_end;) {
      key = GatherKeys(w, blocks, key, s);
      if (s.columns > 0) AttendBlock(w, k, v, s);
    }
  });
  for (int r = 0; r < w.rows; ++r) {
    if (task.partial_row < 0) {
      WriteRow(w, w.token(r), w.head(r), s.out + r * kOutStride, s.row_max[r], s.row_sum[r]);
    } else {
      const std::int64_t row = task.partial_row + r;
      std::copy_n(s.out + r * kOutStride, w.value_dim, partials.out + row * w.value_dim);
      partials.stats[2 * row] = s.row_max[r];
      partials.stats[2 * row + 1] = s.row_sum[r];
    }
  }
}

void MergePartials(const AttentionParams& p, const AttentionMerge& merge, const AttentionPartials& partials) {
  const AttentionTask rows{.sequence = merge.sequence,
                           .kv_head = merge.kv_head,
                           .kv_heads = 1,
                           .query_head = merge.query_head,
                           .query_heads = merge.query_heads,
                           .row_begin = merge.row_begin,
                           .row_end = merge.row_begin + merge.rows,
                           .key_begin = 0,
                           .key_end = 0,
                           .keys = 0,
                           .partial_row = -1};
  const Work w(p, rows);
  const hn::ScalableTag<float> d;
  HWY_ALIGN float sums[kMaxHeadDim];
  for (int r = 0; r < merge.rows; ++r) {
    const auto row_of = [&](int chunk) {
      return merge.partial_row + std::int64_t{chunk} * merge.chunk_stride + r;
    };
    float row_max = -kInfinity, row_sum = 0.0f;
    for (int c = 0; c < merge.chunks; ++c) row_max = std::max(row_max, partials.stats[2 * row_of(c)]);
    std::fill_n(sums, kMaxHeadDim, 0.0f);
    for (int c = 0; c < merge.chunks; ++c) {
      const float chunk_max = partials.stats[2 * row_of(c)];
      const float weight = chunk_max == row_max ? 1.0f : std::exp2(chunk_max - row_max);
      row_sum += weight * partials.stats[2 * row_of(c) + 1];
      const auto factor = hn::Set(d, weight);
      const float* const source = partials.out + row_of(c) * w.value_dim;
      ForEachVector(w.value_dim, [&](std::int64_t i, auto extent) {
        hn::Store(hn::MulAdd(LoadF32(d, source + i, extent), factor, hn::Load(d, sums + i)), d, sums + i);
      });
    }
    WriteRow(w, w.token(r), w.head(r), sums, row_max, row_sum);
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {

HWY_EXPORT(Attend);
HWY_EXPORT(MergePartials);

void attend(const AttentionParams& p, const AttentionTask& task, const AttentionPartials& partials,
            AttentionScratch& scratch) {
  static const bool has_matrix = capabilities(0).isa == kMatrixIsa;
  HWY_DYNAMIC_DISPATCH(Attend)(p, task, partials, has_matrix, scratch);
}

void merge_partials(const AttentionParams& p, const AttentionMerge& merge,
                    const AttentionPartials& partials) {
  HWY_DYNAMIC_DISPATCH(MergePartials)(p, merge, partials);
}

}  // namespace kf::cpu
#endif
