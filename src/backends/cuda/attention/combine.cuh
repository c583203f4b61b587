// Merges what the chunks of a unit gave: one block a row. Launched after the kernels where keys were cut.
#pragma once

#include "backends/cuda/attention/launches.h"
#include "backends/cuda/attention/row_end.cuh"
#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/device/reduce.cuh"

namespace kf::cuda::attention {

constexpr int kCombineWarps = 4, kCombineColumns = kMaxDim / kWarp;  // columns: a lane

template <class T, int kRows, int kKeys>
__global__ __launch_bounds__(kCombineWarps* kWarp) void combine_kernel(const __grid_constant__ Args args) {
  const Args& a = first_argument(args);
  using Tiles = Tiling<kRows, kKeys>;
  wait_for_predecessor();
  const Tiles tiling = tiling_of<kRows, kKeys>(a);
  Span span;
  int number = 0;
  // The segments before this unit's: found by walking units, then counting.
  if (!warp_find(
          a, blockIdx.x, [&](const Span& s) { return Tiles::units(a, s); }, &span, &number))
    return;
  const int chunks = tiling.chunks(a, span);
  if (chunks == 1) return;
  long long before = 0;
  if (is_even(a)) {
    before = static_cast<long long>(span.index) * Tiles::units(a, span) * chunks;
  } else {
    before = warp_sum(a, [&](const Span& s) {
      return s.index < span.index ? static_cast<long long>(Tiles::units(a, s)) * tiling.chunks(a, s) : 0LL;
    });
  }
  const Unit unit = unit_of<kRows, kKeys>(a, span, number);
  const RowsOfTile<kRows> rows(a, unit);
  const int row = static_cast<int>(blockIdx.y);
  if (row >= rows.count) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const Row to_row = row_of(a, unit.kv_head, unit.row_tile * kRows + row);
  const long long slot = (before + static_cast<long long>(number) * chunks) * kRows + row;

  float top = -INFINITY;
  for (int c = lane; c < chunks; c += kWarp)
    top = fmaxf(top, a.partial_lse[slot + static_cast<long long>(c) * kRows]);
  top = lanes_reduce<Max>(top, kWarp);
  const float base = top == -INFINITY ? 0.0f : top;
  // Each warp takes every fourth chunk, a lane every kWarp-th column.
  float sum = 0, out[kCombineColumns] = {};
#pragma unroll 4
  for (int c = warp; c < chunks; c += kCombineWarps) {
    const long long at = slot + static_cast<long long>(c) * kRows;
    const float weight = exp2f(a.partial_lse[at] - base);
    sum += weight;
#pragma unroll
    for (int i = 0; i < kCombineColumns; ++i) {
      const int column = lane + kWarp * i;
      const float v = column < a.value_dim ? a.partial[at * a.value_dim + column] : 0.0f;
      out[i] = weight == 0 ? out[i] : fmaf(weight, v, out[i]);  // what saw nothing may not have been written
    }
  }
  __shared__ float outs[kCombineWarps][kMaxDim], sums[kCombineWarps];
#pragma unroll
  for (int i = 0; i < kCombineColumns; ++i) outs[warp][lane + kWarp * i] = out[i];
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  sum = sums[0];
#pragma unroll
  for (int w = 1; w < kCombineWarps; ++w) sum += sums[w];
  Segment s;
  s.whole = true;
  const RowEnd e = end_row(a, s, to_row.head, base, 1.0f, sum);
  if (threadIdx.x == 0) store_lse(a, span, to_row.token, to_row.head, e.lse);
  T* const to = static_cast<T*>(a.out.data) + row_offset(a.out, a, span, to_row.token, to_row.head);
  for (int column = static_cast<int>(threadIdx.x); column < a.value_dim; column += kCombineWarps * kWarp) {
    float v = outs[0][column];
#pragma unroll
    for (int w = 1; w < kCombineWarps; ++w) v += outs[w][column];
    to[column] = narrow<T>(e.factor == 0 ? 0.0f : v * e.factor);
  }
}

template <class T, int kRows, int kKeys>
void launch_combine(const Launch& launch, const Args& a, const Grid& grid) {
  if (a.target_blocks == 0) return;
  launch(combine_kernel<T, kRows, kKeys>, dim3(grid.units, kRows), dim3(kCombineWarps * kWarp), 0, a);
}

}  // namespace kf::cuda::attention
