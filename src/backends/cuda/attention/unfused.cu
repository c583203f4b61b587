// Scores, masks and weighted values as an eager framework computes them: all written out. Both products are tiles in f32, whatever
// the dtypes: a block has kUnfusedRows (token, head) rows of a K/V head by as many keys or columns of the values.

#include "backends/cuda/attention/unfused_kernel.h"

#include "backends/cuda/attention/keys.cuh"
#include "backends/cuda/attention/sequences.cuh"
#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/launch.cuh"

namespace kf::cuda::attention {
namespace {

constexpr int kTile = kUnfusedRows, kDepth = 32, kPadded = kTile + 4, kThreads = 256, kEach = 4;

// sums[i][j] += row(r0 + i, d) column(c0 + j, d) over d < depth, where row(r, d) and column(c, d) read what they name.
template <class Row, class Column>
__device__ void multiply(int depth, int r0, int c0, const Row& row, const Column& column,
                         float (&sums)[kEach][kEach]) {
  __shared__ float4 tiles[2 * kDepth * kPadded / 4];
  float* const rows = reinterpret_cast<float*>(tiles);
  float* const columns = rows + kDepth * kPadded;
  for (int first = 0; first < depth; first += kDepth) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
      const int d = first + i % kDepth, r = i / kDepth;
      rows[i % kDepth * kPadded + r] = d < depth ? row(r, d) : 0.0f;
    }
    column(first, columns);
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      float x[kEach], y[kEach];
      load(rows + d * kPadded + r0, x);
      load(columns + d * kPadded + c0, y);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
    }
  }
}

// The first of a thread's four rows and of its four columns.
__device__ inline int own_rows() { return static_cast<int>(threadIdx.x) / (kTile / kEach) * kEach; }
__device__ inline int own_columns() { return static_cast<int>(threadIdx.x) % (kTile / kEach) * kEach; }

// A thread's sums, each as f(sum, column), to its rows of `data`, which lie as `rows` says.
template <class Out, class F>
__device__ void store_sums(const Rows& rows, Out* data, const Args& a, const Unit& unit, int used_rows,
                           int first_column, int columns, const float (&sums)[kEach][kEach], const F& f) {
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int r = own_rows() + i;
    if (r >= used_rows) continue;
    const Row at = row_of(a, unit.kv_head, unit.row_tile * kTile + r);
    Out* const to = data + row_offset(rows, a, unit.span, at.token, at.head);
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (const int column = first_column + own_columns() + j; column < columns)
        to[column] = narrow<Out>(f(sums[i][j], column));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) scores_kernel(const __grid_constant__ UnfusedArgs args) {
  const UnfusedArgs& u = first_argument(args);
  wait_for_predecessor();
  const Args& a = u.batch;
  Unit unit;
  if (!find_unit<kTile>(a, blockIdx.x, &unit)) return;
  const RowsOfTile<kTile> tile(a, unit);
  const int first_key = static_cast<int>(blockIdx.y) * kTile, end = unit.span.seqlen_k;
  float sums[kEach][kEach] = {};
  if (first_key < end)
    multiply(
        a.head_dim, own_rows(), own_columns(),
        [&](int r, int d) {
          if (r >= tile.count) return 0.0f;
          const Row at = row_of(a, unit.kv_head, unit.row_tile * kTile + r);
          return widen(static_cast<const T*>(a.q.data)[row_offset(a.q, a, unit.span, at.token, at.head) + d]);
        },
        [&](int first, float* to) {
          for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
            const int d = first + i % kDepth, key = first_key + i / kDepth;
            to[i % kDepth * kPadded + i / kDepth] =
                d < a.head_dim && key < end ? key_element(a.k, key_place(a, unit.span, key), unit.kv_head, d)
                                            : 0.0f;
          }
        },
        sums);
  store_sums(u.scores, static_cast<float*>(u.scores.data), a, unit, tile.count, first_key, u.columns, sums,
             [&](float sum, int key) {
               float v = sum * a.scale;
               if (a.softcap > 0) v = a.softcap * tanhf(v / a.softcap);
               return key < end ? v : -INFINITY;
             });
}

template <class T>
__global__ void __launch_bounds__(kThreads) values_kernel(const __grid_constant__ UnfusedArgs args) {
  const UnfusedArgs& u = first_argument(args);
  wait_for_predecessor();
  const Args& a = u.batch;
  Unit unit;
  if (!find_unit<kTile>(a, blockIdx.x, &unit)) return;
  const RowsOfTile<kTile> tile(a, unit);
  const int first_column = static_cast<int>(blockIdx.y) * kTile;
  const int keys = min(unit.span.seqlen_k, u.columns);
  float sums[kEach][kEach] = {};
  multiply(
      keys, own_rows(), own_columns(),
      [&](int r, int key) {
        if (r >= tile.count) return 0.0f;
        const Row at = row_of(a, unit.kv_head, unit.row_tile * kTile + r);
        return static_cast<const float*>(
            u.scores.data)[row_offset(u.scores, a, unit.span, at.token, at.head) + key];
      },
      [&](int first, float* to) {
        for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
          const int key = first + i / kTile, column = first_column + i % kTile;
          to[i / kTile * kPadded + i % kTile] =
              key < keys && column < a.value_dim
                  ? key_element(a.v, key_place(a, unit.span, key), unit.kv_head, column)
                  : 0.0f;
        }
      },
      sums);
  store_sums(a.out, static_cast<T*>(a.out.data), a, unit, tile.count, first_column, a.value_dim, sums,
             [](float sum, int) { return sum; });
}

// Whether the layout lets a row see a key.
__device__ bool in_layout(const MaskArgs& m, std::int64_t at, int key) {
  const int block = key / m.block_size_k;
  if (m.bits) return block < m.layout_columns && m.bits[at + block];
  if (!m.list) return true;
  // Ascending, -1 after the last.
  int low = 0, high = m.layout_columns;
  while (low < high) {
    const int middle = (low + high) / 2;
    const int there = m.list[at + middle];
    if (there >= 0 && there < block)
      low = middle + 1;
    else
      high = middle;
  }
  return low < m.layout_columns && m.list[at + low] == block;
}

// A block a row, some columns of it at a time: whole groups of keep_m.
__global__ void __launch_bounds__(kThreads) mask_kernel(const __grid_constant__ MaskArgs args) {
  const MaskArgs& m = first_argument(args);
  wait_for_predecessor();
  const Args& a = m.batch;
  Span span;
  int token = 0;
  if (!warp_find(
          a, blockIdx.x, [](const Span& s) { return s.seqlen_q; }, &span, &token))
    return;
  __shared__ float row[kMaskColumns];
  const int head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const KeyRange seen = visible_keys(a, span, token);
  const RowFeatures features(a, span, token, head);
  const float* const from = static_cast<const float*>(m.from.data) + row_offset(m.from, a, span, token, head);
  float* const to = static_cast<float*>(m.to.data) + row_offset(m.to, a, span, token, head);
  const std::int64_t layout = span.index * m.layout_batch_stride +
                              head / m.heads_a_layout * m.layout_head_stride +
                              (m.block_size_q > 0 ? token / m.block_size_q : 0) * m.layout_block_stride;
  const int step = m.keep_m > 0 ? kMaskColumns / m.keep_m * m.keep_m : kMaskColumns;
  for (int first = 0; first < m.columns; first += step) {
    const int count = min(step, m.columns - first);
    __syncthreads();  // those before are written
    for (int i = thread; i < count; i += kThreads) {
      const int key = first + i;
      const bool sees = key >= seen.begin && key < seen.end && in_layout(m, layout, key);
      row[i] = sees ? features.score(a, from[key], key) : -INFINITY;
    }
    __syncthreads();
    for (int i = thread; i < count; i += kThreads) {
      bool kept = true;
      if (m.keep_m > 0) {
        const auto rank = [](float v) { return isnan(v) ? INFINITY : v; };
        const int group = i / m.keep_m * m.keep_m, end = min(group + m.keep_m, count);
        const float own = rank(row[i]);
        int larger = 0;
        for (int j = group; j < end; ++j) {
          const float other = rank(row[j]);
          larger += other > own || (other == own && j < i);
        }
        kept = larger < m.keep_n;
      }
      to[first + i] = kept ? row[i] : -INFINITY;
    }
  }
}

dim3 tiles(std::int64_t units, int columns) {
  return dim3(static_cast<unsigned>(units), static_cast<unsigned>((columns + kTile - 1) / kTile));
}

}  // namespace

void launch_scores(const UnfusedArgs& a, std::int64_t max_units, const TensorView& on,
                   const RunContext& ctx) {
  if (max_units == 0) return;
  with_activation_type(a.batch.q.dtype, [&]<class T>(std::type_identity<T>) {
    Launch(on, ctx)(scores_kernel<T>, tiles(max_units, a.columns), dim3(kThreads), 0, a);
  });
}

void launch_values(const UnfusedArgs& a, std::int64_t max_units, const TensorView& on,
                   const RunContext& ctx) {
  if (max_units == 0) return;
  with_activation_type(a.batch.out.dtype, [&]<class T>(std::type_identity<T>) {
    Launch(on, ctx)(values_kernel<T>, tiles(max_units, a.batch.value_dim), dim3(kThreads), 0, a);
  });
}

void launch_mask(const MaskArgs& a, const TensorView& on, const RunContext& ctx) {
  Launch(on, ctx)(mask_kernel,
                  dim3(static_cast<unsigned>(a.batch.total_q), static_cast<unsigned>(a.batch.num_heads)),
                  dim3(kThreads), 0, a);
}

}  // namespace kf::cuda::attention
