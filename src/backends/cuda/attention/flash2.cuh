// Attention for tiles of many rows: FlashAttention-2's loop. Keys of the next tile are on their way while values are
// multiplied, and values while keys are.
#pragma once

#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/attention/tile.cuh"

namespace kf::cuda::attention {

template <class T, int kDim, bool kPlain>
__global__ __launch_bounds__(
    Flash2Shape<kDim>::kWarps * 32,
    Flash2Shape<kDim>::kBlocksPerSm) void flash2_kernel(const __grid_constant__ Args a) {
  using Shape = Flash2Shape<kDim>;
  constexpr int kRows = Shape::kRows, kKeys = Shape::kKeys, kThreads = Shape::kWarps * 32;
  constexpr int kWarpRows = kRows / Shape::kWarps, kBlocks = kWarpRows / 16;
  wait_for_predecessor();
  // In shared memory, so that it takes no registers in the loop.
  __shared__ Segment s;
  __shared__ KeyRange seen_by_all;
  __shared__ int last_token, used_rows;
  // Where the keys of a tile and of the next begin.
  __shared__ std::uint32_t k_chunks[2][kKeys], v_chunks[2][kKeys];
  extern __shared__ __align__(1024) unsigned char shared[];
  constexpr std::size_t kTileBytes = std::size_t{kKeys} * kDim * 2;
  const std::uint32_t q_s = shared_address(shared), k_s = q_s + kRows * kDim * 2,
                      v_s = k_s + static_cast<std::uint32_t>(kTileBytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const std::uint32_t warp_q = q_s + warp * kWarpRows * kDim * 2;
  {
    Segment mine;
    if (!find_segment<kRows, kKeys>(a, &mine)) return;
    load_queries<T, kDim, kRows, kThreads>(q_s, a, mine.unit, thread);
    if (thread == 0) {
      const RowsOfTile<kRows> rows(a, mine.unit);
      const Span& span = mine.unit.span;
      s = mine;
      last_token = rows.last_token;
      used_rows = rows.count;
      seen_by_all = {visible_keys(a, span, rows.last_token, rows.last_token).begin,
                     min(visible_keys(a, span, rows.first_token, rows.first_token).end, mine.keys.end)};
    }
  }
  __syncthreads();
  const int end = s.keys.end;

  const auto row_at = [&](int r) {
    return row_of(a, s.unit.kv_head, s.unit.row_tile * kRows + warp * kWarpRows + r);
  };
  const auto visible_at = [&](int r) {
    const int token = min(row_at(r).token, last_token);
    return visible_keys(a, s.unit.span, token, token);
  };
  const auto locate = [&](int key, int parity) {
    if (thread < kKeys && key + thread < end) {
      const KeyPlace at = key_place(a, s.unit.span, key + thread);
      k_chunks[parity][thread] = key_chunk(a.k, at, s.unit.kv_head);
      v_chunks[parity][thread] = key_chunk(a.v, at, s.unit.kv_head);
    }
  };
  const auto load_keys = [&](int key, int parity) {
    load_rows<kDim, kKeys, kThreads>(k_s, a.k.data, end - key, a.head_dim, thread,
                                     [&](int r) { return k_chunks[parity][r]; });
    commit_copies();
  };

  Tile<T, kDim, kBlocks, kKeys> tile;
  tile.clear();
  const float unit = kPlain ? a.scale * kLog2e : kLog2e;
  locate(s.keys.begin, 0);
  __syncthreads();
  if (s.keys.begin < end) load_keys(s.keys.begin, 0);
  commit_copies();
  int parity = 0;
#pragma unroll 1
  for (int key = s.keys.begin; key < end; key += kKeys, parity ^= 1) {
    wait_for_copies<0>();
    __syncthreads();  // keys are here, and all have read the values before
    load_rows<kDim, kKeys, kThreads>(v_s, a.v.data, end - key, a.value_dim, thread,
                                     [&](int r) { return v_chunks[parity][r]; });
    commit_copies();
    locate(key + kKeys, parity ^ 1);
    tile.multiply_keys(warp_q, k_s);
    // Some row does not see all of these keys.
    const bool partly = key < seen_by_all.begin || key + kKeys > seen_by_all.end;
    if constexpr (!kPlain) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Row at_row = row_at(b * 16 + h * 8 + lane / 4);
          if (at_row.token >= s.unit.span.seqlen_q) continue;
          const RowFeatures row(a, s.unit.span, at_row.token, at_row.head);
          const int column = key + lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& v = tile.scores[b][n][2 * h + i];
              const int at = column + n * 8 + i;
              if (at < end) v = row.score(a, v, at);
            }
        }
    }
    if (partly) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const KeyRange v = visible_at(b * 16 + h * 8 + lane / 4);
          tile.hide(b, h, v.begin - key, min(v.end, end) - key);
        }
    }
    wait_for_copies<0>();
    __syncthreads();  // values are here, and all have read the keys
    if (key + kKeys < end) load_keys(key + kKeys, parity ^ 1);
    tile.softmax(unit);
    bool apart = false;
    if (partly) {
      const auto* values = reinterpret_cast<const uint4*>(shared + kRows * kDim * 2 + kTileBytes);
      for (int i = thread; i < kKeys * kDim / 8; i += kThreads) apart = apart || is_hostile<T>(values[i]);
      apart = __syncthreads_or(apart);
    }
    if (apart)
      tile.multiply_values_apart(reinterpret_cast<const T*>(shared + kRows * kDim * 2 + kTileBytes),
                                 [&](int b, int h, int column) {
                                   const KeyRange v = visible_at(b * 16 + h * 8 + lane / 4);
                                   const int at = key + column;
                                   return at >= v.begin && at < v.end && at < end;
                                 });
    else
      tile.multiply_values(v_s);
  }
  wait_for_copies<0>();
  __syncthreads();  // where there was no key, the queries have arrived before their memory is used again

  float factor[kBlocks][2];
  const bool whole = s.whole;
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kRows;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = b * 16 + h * 8 + lane / 4, row = warp * kWarpRows + r;
      const float sum = quad_sum(tile.sum[b][h]);
      factor[b][h] = 0;
      if (row >= used_rows) continue;
      const Row at = row_at(r);
      const RowEnd e = end_row(a, s, at.head, tile.max[b][h], unit, sum);
      factor[b][h] = e.factor;
      if (lane % 4 != 0) continue;
      if (whole)
        store_lse(a, s.unit.span, at.token, at.head, e.lse);
      else
        a.partial_lse[slot + row] = e.lse;
    }
  // A factor of zero is of a row that sees nothing: zeros, whatever its sums are.
  const auto result = [&](int b, int h, int d, int i) {
    return factor[b][h] == 0 ? 0.0f : tile.out[b][d][2 * h + i] * factor[b][h];
  };
  if (!whole) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp * kWarpRows + b * 16 + h * 8 + lane / 4, column = lane % 4 * 2;
        float* const to = a.partial + (slot + row) * a.value_dim + column;
        if (row >= used_rows) continue;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d)
          if (column + d * 8 < a.value_dim)
            *reinterpret_cast<float2*>(to + d * 8) = make_float2(result(b, h, d, 0), result(b, h, d, 1));
      }
    return;
  }
  // Whole units go out by way of the warp's queries, which only this warp has read: rows of 16 bytes a lane.
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t to = chunk_address<kDim * 2>(warp_q, b * 16 + h * 8 + lane / 4, 0) + lane % 4 * 4;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
        store_shared(to ^ (d << 4), pack_pair<T>(result(b, h, d, 0), result(b, h, d, 1)));
    }
  __syncwarp();
  constexpr int kChunks = kDim / 8;
#pragma unroll 4
  for (int i = lane; i < kWarpRows * kChunks; i += 32) {
    const int r = i / kChunks, chunk = i % kChunks;
    if (warp * kWarpRows + r >= used_rows || chunk * 8 >= a.value_dim) continue;
    const uint4 v = *reinterpret_cast<const uint4*>(shared + (warp * kWarpRows + r) * kDim * 2 +
                                                    ((chunk ^ (r & 7)) << 4));
    const Row at = row_at(r);
    T* const to =
        static_cast<T*>(a.out.data) + row_offset(a.out, a, s.unit.span, at.token, at.head) + chunk * 8;
    *reinterpret_cast<uint4*>(to) = v;
  }
}

}  // namespace kf::cuda::attention
