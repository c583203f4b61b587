// Merges what the chunks of a unit gave: one block a row. Launched after the kernels where keys were cut.
#pragma once

#include "backends/cuda/attention/flash2.cuh"

namespace kf::cuda::attention {

constexpr int kCombineWarps = 4;

template <class T, int kRows, int kKeys>
__global__ __launch_bounds__(kCombineWarps * 32) void combine_kernel(const __grid_constant__ Args a) {
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
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Row to_row = row_of(a, unit.kv_head, unit.row_tile * kRows + row);
  const long long slot = (before + static_cast<long long>(number) * chunks) * kRows + row;

  float top = -INFINITY;
  for (int c = lane; c < chunks; c += 32)
    top = fmaxf(top, a.partial_lse[slot + static_cast<long long>(c) * kRows]);
  for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
  const float base = top == -INFINITY ? 0.0f : top;
  // Each warp takes every fourth chunk, a lane every 32nd column.
  float sum = 0, out[8] = {};
#pragma unroll 4
  for (int c = warp; c < chunks; c += kCombineWarps) {
    const long long at = slot + static_cast<long long>(c) * kRows;
    const float weight = exp2f(a.partial_lse[at] - base);
    sum += weight;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = lane + 32 * i;
      const float v = column < a.value_dim ? a.partial[at * a.value_dim + column] : 0.0f;
      out[i] = weight == 0 ? out[i] : fmaf(weight, v, out[i]);  // what saw nothing may not have been written
    }
  }
  __shared__ float outs[kCombineWarps][8 * 32], sums[kCombineWarps];
#pragma unroll
  for (int i = 0; i < 8; ++i) outs[warp][lane + 32 * i] = out[i];
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
  for (int column = static_cast<int>(threadIdx.x); column < a.value_dim; column += kCombineWarps * 32) {
    float v = outs[0][column];
#pragma unroll
    for (int w = 1; w < kCombineWarps; ++w) v += outs[w][column];
    to[column] = narrow<T>(e.factor == 0 ? 0.0f : v * e.factor);
  }
}

}  // namespace kf::cuda::attention
