// A batch as a kernel walks it. The heads of a group share their keys, so that the rows of a tile are a sequence's (token, head
// of the group) pairs, token by token. A unit is one tile of rows of one K/V head; where there are too few of them to fill the
// GPU its keys are cut into chunks, of one length for all, so that long and short sequences balance: a segment is one unit
// and one chunk, and a block's work. Lengths are only known on the device: each block finds its segment itself.
#pragma once

#include "backends/cuda/attention/args.h"
#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/launch.cuh"

namespace kf::cuda::attention {

struct Span {
  int index;  // in the batch
  int q_begin, seqlen_q;
  int k_begin, seqlen_k;

  // The key that query token t stands at.
  __device__ int own_key(int t) const { return seqlen_k - seqlen_q + t; }
};

// A table's value, in range whatever it holds.
__device__ inline int checked(const Args& a, TableFault::Table table, int entry, int value, int limit) {
  if (value >= 0 && value <= limit) return value;
  note_fault(a.fault, table, entry, value, std::int64_t{limit} + 1);
  return value < 0 ? 0 : limit;
}

__device__ inline Span span_of(const Args& a, int b) {
  if (a.dense) return {b, 0, a.seqlen_q, 0, a.seqlen_k};
  Span s{b, b, 1, 0, 0};
  // All are asked for before any is looked at.
  const int q_begin = a.cu_seqlens_q ? a.cu_seqlens_q[b] : 0,
            q_end = a.cu_seqlens_q ? a.cu_seqlens_q[b + 1] : 0,
            length = a.context_lens ? a.context_lens[b] : 0, k_begin = a.context_lens ? 0 : a.cu_seqlens_k[b],
            k_end = a.context_lens ? 0 : a.cu_seqlens_k[b + 1];
  if (a.cu_seqlens_q) {
    s.q_begin = checked(a, TableFault::cu_seqlens_q, b, q_begin, a.total_q);
    s.seqlen_q = max(checked(a, TableFault::cu_seqlens_q, b + 1, q_end, a.total_q) - s.q_begin, 0);
  }
  if (a.context_lens) {
    const std::int64_t most = static_cast<std::int64_t>(a.max_pages) * a.page_size;
    s.seqlen_k = checked(a, TableFault::context_lens, b, length,
                         most < kUnbounded ? static_cast<int>(most) : kUnbounded);
  } else {
    s.k_begin = checked(a, TableFault::cu_seqlens_k, b, k_begin, a.total_k);
    s.seqlen_k = max(checked(a, TableFault::cu_seqlens_k, b + 1, k_end, a.total_k) - s.k_begin, 0);
  }
  return s;
}

struct KeyRange {
  int begin, end;
};

// Those that query token t may attend.
__device__ inline KeyRange visible_keys(const Args& a, const Span& s, int t) {
  const int own = s.own_key(t);
  return {min(max(own - a.window_left, 0), s.seqlen_k), min(max(own + a.window_right + 1, 0), s.seqlen_k)};
}
__device__ inline KeyRange visible_keys(const Args& a, const Span& s, int first_token, int last_token) {
  return {visible_keys(a, s, first_token).begin, visible_keys(a, s, last_token).end};
}

// The token of a sequence's row, and its head.
struct Row {
  int token, head;
};
__device__ inline Row row_of(const Args& a, int kv_head, int flat) {
  const int token =
      static_cast<int>((static_cast<std::uint64_t>(static_cast<std::uint32_t>(flat)) * a.group_factor) >>
                       (31 + a.group_shift));
  return {token, kv_head * a.group + flat - token * a.group};
}

constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// How many tiles of kRows rows and of kKeys keys sequences have, and chunks.
template <int kRows, int kKeys>
struct Tiling {
  int chunk_tiles;  // tiles of keys a chunk; 0: none is cut

  static __device__ int row_tiles(const Args& a, const Span& s) {
    return divide_up(s.seqlen_q * a.group, kRows);
  }
  static __device__ int units(const Args& a, const Span& s) { return a.num_kv_heads * row_tiles(a, s); }
  static __device__ KeyRange keys(const Args& a, const Span& s) {
    return s.seqlen_q > 0 ? visible_keys(a, s, 0, s.seqlen_q - 1) : KeyRange{0, 0};
  }
  static __device__ int key_tiles(const Args& a, const Span& s) {
    const KeyRange r = keys(a, s);
    return divide_up(max(r.end - r.begin, 0), kKeys);
  }
  __device__ int chunks(const Args& a, const Span& s) const {
    return chunk_tiles == 0 ? 1 : max(1, divide_up(key_tiles(a, s), chunk_tiles));
  }
};

__device__ inline bool is_even(const Args& a) { return a.dense || a.batch == 1; }

// By whole warps: the sum of f over the batch.
template <class F>
__device__ inline long long warp_sum(const Args& a, F f) {
  if (is_even(a)) return a.batch > 0 ? static_cast<long long>(f(span_of(a, 0))) * a.batch : 0;
  long long sum = 0;
  for (int b = static_cast<int>(threadIdx.x) % kWarp; b < a.batch; b += kWarp) sum += f(span_of(a, b));
  for (int d = kWarp / 2; d > 0; d /= 2) sum += shuffle_xor(sum, d);
  return sum;
}

// By whole warps: the sequence that item `id` belongs to, where each has f(span) of them, and its number there. False
// beyond the last.
template <class F>
__device__ inline bool warp_find(const Args& a, long long id, F f, Span* span, int* number) {
  if (is_even(a)) {
    if (a.batch == 0) return false;
    *span = span_of(a, 0);
    const int each = f(*span);
    const auto n = static_cast<unsigned>(id);  // of a block
    if (each == 0 || id >= static_cast<long long>(each) * a.batch) return false;
    const unsigned b = n / static_cast<unsigned>(each);
    span->index = static_cast<int>(b);  // alike, or one
    *number = static_cast<int>(n - b * static_cast<unsigned>(each));
    return true;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int first = 0; first < a.batch; first += kWarp) {
    const int count = first + lane < a.batch ? f(span_of(a, first + lane)) : 0;
    long long end = count;
    for (int d = 1; d < kWarp; d *= 2) {
      const long long below = shuffle_up(end, d);
      if (lane >= d) end += below;
    }
    const auto beyond = ballot(id < end);
    if (beyond) {
      const int holder = lowest_lane(beyond);
      *span = span_of(a, first + holder);
      *number = static_cast<int>(id - shuffle(end - count, holder));
      return true;
    }
    id -= shuffle(end, kWarp - 1);
  }
  return false;
}

constexpr int kMinChunkTiles = 2;

template <int kRows, int kKeys>
__device__ inline Tiling<kRows, kKeys> tiling_of(const Args& a) {
  using T = Tiling<kRows, kKeys>;
  if (a.target_blocks == 0) return {0};
  const long long tiles =
      warp_sum(a, [&](const Span& s) { return static_cast<long long>(T::units(a, s)) * T::key_tiles(a, s); });
  const long long even = (tiles + a.target_blocks - 1) / a.target_blocks;
  return {max(kMinChunkTiles, static_cast<int>(even))};
}

struct Unit {
  Span span;
  int kv_head, row_tile;
};
struct Segment {
  Unit unit;
  KeyRange keys;  // of its rows that lie in its chunk
  bool whole;     // the unit's only one
};

template <int kRows>
struct RowsOfTile {
  int first_token, last_token, count;  // count: rows in use
  __device__ RowsOfTile(const Args& a, const Unit& u) {
    const int begin = u.row_tile * kRows, end = min(begin + kRows, u.span.seqlen_q * a.group);
    count = end - begin;
    first_token = row_of(a, 0, begin).token;
    last_token = row_of(a, 0, end - 1).token;
  }
};

// Of a sequence's units the later rows first: of causal attention they have the most keys.
template <int kRows, int kKeys>
__device__ inline Unit unit_of(const Args& a, const Span& s, int number) {
  const int tiles = Tiling<kRows, kKeys>::row_tiles(a, s);
  return {s, number / tiles, tiles - 1 - number % tiles};
}

template <int kRows, int kKeys>
__device__ inline bool find_segment(const Args& a, Segment* segment) {
  using T = Tiling<kRows, kKeys>;
  const T tiling = tiling_of<kRows, kKeys>(a);
  Span span;
  int number = 0;
  const auto segments = [&](const Span& s) { return T::units(a, s) * tiling.chunks(a, s); };
  if (!warp_find(a, blockIdx.x, segments, &span, &number)) return false;
  const int chunks = tiling.chunks(a, span);
  segment->unit = unit_of<kRows, kKeys>(a, span, number / chunks);
  segment->whole = chunks == 1;
  const RowsOfTile<kRows> rows(a, segment->unit);
  segment->keys = visible_keys(a, span, rows.first_token, rows.last_token);
  if (!segment->whole) {
    const int begin = T::keys(a, span).begin + number % chunks * tiling.chunk_tiles * kKeys;
    segment->keys.begin = max(segment->keys.begin, begin);
    segment->keys.end = min(segment->keys.end, begin + tiling.chunk_tiles * kKeys);
  }
  segment->keys.end = max(segment->keys.end, segment->keys.begin);
  return true;
}

// The `number`-th unit; false beyond the last.
template <int kRows>
__device__ inline bool find_unit(const Args& a, unsigned number, Unit* unit) {
  using T = Tiling<kRows, 1>;
  Span span;
  int of_span = 0;
  if (!warp_find(
          a, number, [&](const Span& s) { return T::units(a, s); }, &span, &of_span))
    return false;
  *unit = unit_of<kRows, 1>(a, span, of_span);
  return true;
}

// Likewise, with all its keys.
template <int kRows>
__device__ inline bool find_whole_unit(const Args& a, unsigned number, Segment* segment) {
  if (!find_unit<kRows>(a, number, &segment->unit)) return false;
  segment->whole = true;
  const RowsOfTile<kRows> rows(a, segment->unit);
  segment->keys = visible_keys(a, segment->unit.span, rows.first_token, rows.last_token);
  segment->keys.end = max(segment->keys.end, segment->keys.begin);
  return true;
}

// ---- Where rows lie

__device__ inline std::int64_t row_offset(const Rows& r, const Args& a, const Span& s, int token, int head) {
  return (a.dense ? s.index * r.outer_stride : s.q_begin * r.token_stride) + token * r.token_stride +
         head * r.head_stride;
}

// A key's page, and its place there; dense and packed sequences are pages of their own. Ids out of range are those of page 0.
struct KeyPlace {
  std::int64_t outer, row;
};
__device__ inline KeyPlace key_place(const Args& a, const Span& s, int key) {
  if (!a.block_tables) return {a.dense ? s.index : 0, static_cast<std::int64_t>(s.k_begin) + key};
  const int page = a.page_shift >= 0 ? key >> a.page_shift : key / a.page_size;
  const std::int64_t entry = s.index * a.table_stride + page;
  int id = a.block_tables[entry];
  if (static_cast<unsigned>(id) >= static_cast<unsigned>(a.num_pages)) {
    note_fault(a.fault, TableFault::block_tables, entry, id, a.num_pages);
    id = 0;
  }
  return {id, key - page * a.page_size};
}
template <class Strides>
__device__ inline std::int64_t key_offset(const Strides& k, const KeyPlace& at, int kv_head) {
  return at.outer * k.outer_stride + at.row * k.token_stride + kv_head * k.head_stride;
}

// ---- Features beside the window

// Whether scores have any.
__device__ inline bool has_features(const Args& a) {
  return a.softcap > 0 || a.slopes != nullptr || a.mask.data != nullptr;
}

__device__ inline float mask_at(const Rows& mask, std::int64_t offset) {
  switch (mask.dtype) {
    case DType::boolean:
      return static_cast<const std::uint8_t*>(mask.data)[offset] ? 0.0f : -INFINITY;
    case DType::f16:
      return widen(static_cast<const F16*>(mask.data)[offset]);
    case DType::bf16:
      return widen(static_cast<const Bf16*>(mask.data)[offset]);
    default:
      return static_cast<const float*>(mask.data)[offset];
  }
}

// What one row adds to its scores.
struct RowFeatures {
  float slope;
  int own_key;
  std::int64_t mask_offset;

  __device__ RowFeatures(const Args& a, const Span& s, int token, int head)
      : slope(a.slopes ? a.slopes[s.index * a.slopes_batch_stride + head * a.slopes_head_stride] : 0.0f),
        own_key(s.own_key(token)),
        mask_offset(a.mask.data ? row_offset(a.mask, a, s, token, head) : 0) {}

  // From the product q . k; natural units.
  __device__ float score(const Args& a, float product, int key) const {
    float v = product * a.scale;
    if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
    if (a.slopes) v -= slope * static_cast<float>(abs(own_key - key));
    if (a.mask.data) v += mask_at(a.mask, mask_offset + key);
    return v;
  }
};

}  // namespace kf::cuda::attention
