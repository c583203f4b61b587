// Attention for few rows a K/V head, such as decode's: bound by reading keys and values. Each warp streams keys of its own, 16 at
// a time, through a ring of its own in shared memory, so that no warp waits for another; the warps' results are merged at the end.
//
// kClustered: a unit is a cluster's, whose blocks take its keys in turns and merge what they have through their shared memory. So
// there is no second launch, and where a block's keys are does not wait for how many there are.
#pragma once

#include "backends/cuda/attention/flash2.cuh"
#include "backends/cuda/device/cluster.cuh"

namespace kf::cuda::attention {

template <class T, int kDim, class Shape, bool kClustered>
__global__ __launch_bounds__(Shape::kWarps * 32,
                             Shape::kBlocksPerSm) void decode_kernel(const __grid_constant__ Args a) {
  constexpr int kRows = Shape::kRows, kKeys = Shape::kWarpKeys, kStages = Shape::kStages,
                kWarps = Shape::kWarps;
  wait_for_predecessor();
  Segment s;
  int rank = 0, blocks = 1;
  if constexpr (kClustered) {
    rank = cluster_rank();
    blocks = cluster_blocks();
    if (!find_whole_unit<kRows>(a, blockIdx.x / static_cast<unsigned>(blocks), &s)) return;
    cluster_arrive();  // this block runs
  } else {
    if (!find_segment<kRows, Shape::kKeys>(a, &s)) return;
  }
  const Span& span = s.unit.span;
  const int kv_head = s.unit.kv_head, end = s.keys.end;
  const RowsOfTile<kRows> tile_rows(a, s.unit);
  const KeyRange first = visible_keys(a, span, tile_rows.first_token, tile_rows.first_token);
  const KeyRange last = visible_keys(a, span, tile_rows.last_token, tile_rows.last_token);

  extern __shared__ __align__(1024) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  unsigned char* const ring = shared + Shape::kQueryBytes + warp * kStages * 2 * Shape::kTileBytes;
  const std::uint32_t q_s = shared_address(shared), ring_s = shared_address(ring);

  int token[2], head[2];
  KeyRange visible[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int flat = s.unit.row_tile * kRows + h * 8 + lane / 4;
    const Row at = row_of(a, kv_head, flat);
    token[h] = at.token;
    head[h] = at.head;
    visible[h] =
        visible_keys(a, span, min(token[h], tile_rows.last_token), min(token[h], tile_rows.last_token));
  }

  load_queries<T, kDim, kRows, kWarps * 32>(q_s, a, s.unit, thread);
  commit_copies();
  const int warp_begin = s.keys.begin + (rank * kWarps + warp) * kKeys, key_step = blocks * Shape::kKeys;
  const auto fetch = [&](int i) {
    const int key = warp_begin + i * key_step;
    const std::uint32_t to = ring_s + i % kStages * 2 * Shape::kTileBytes;
    if (key < end) {
      // A lane finds one key's place for all.
      std::uint32_t k_chunk = 0, v_chunk = 0;
      if (lane < kKeys && key + lane < end) {
        const KeyPlace at = key_place(a, span, key + lane);
        k_chunk = key_chunk(a.k, at, kv_head);
        v_chunk = key_chunk(a.v, at, kv_head);
      }
      load_rows<kDim, kKeys, 32>(to, a.k.data, end - key, a.head_dim, lane,
                                 [&](int r) { return __shfl_sync(0xffffffffu, k_chunk, r); });
      load_rows<kDim, kKeys, 32>(to + Shape::kTileBytes, a.v.data, end - key, a.value_dim, lane,
                                 [&](int r) { return __shfl_sync(0xffffffffu, v_chunk, r); });
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);
  wait_for_copies<kStages - 1>();
  __syncthreads();  // queries are here

  using Rows = Tile<T, kDim, 1, kKeys>;
  Rows tile;
  tile.clear();
  constexpr bool kHeldQueries = kDim <= 128;  // of more they would leave too few registers
  typename Rows::Queries queries;
  if constexpr (kHeldQueries) queries.load(q_s);
  const bool plain = !has_features(a) && a.scale > 0;
  const float unit = plain ? a.scale * kLog2e : kLog2e;
#pragma unroll 1
  for (int i = 0, key = warp_begin; key < end; ++i, key += key_step) {
    wait_for_copies<kStages - 2>();
    __syncwarp();
    fetch(i + kStages - 1);
    const int place = i % kStages * 2 * Shape::kTileBytes;
    if constexpr (kHeldQueries)
      tile.multiply_keys(queries, ring_s + place);
    else
      tile.multiply_keys(q_s, ring_s + place);
    const bool partly = key < last.begin || key + kKeys > first.end || key + kKeys > end;
    if (!plain) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (token[h] >= span.seqlen_q) continue;
        const RowFeatures row(a, span, token[h], head[h]);
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& v = tile.scores[0][n][2 * h + e];
            const int at = key + lane % 4 * 2 + n * 8 + e;
            if (at < end) v = row.score(a, v, at);
          }
      }
    }
    bool apart = false;
    if (partly) {
#pragma unroll
      for (int h = 0; h < 2; ++h) tile.hide(0, h, visible[h].begin - key, min(visible[h].end, end) - key);
      const auto* values = reinterpret_cast<const uint4*>(ring + place + Shape::kTileBytes);
      for (int c = lane; c < kKeys * kDim / 8; c += 32) apart = apart || is_hostile<T>(values[c]);
      apart = __any_sync(0xffffffffu, apart);
    }
    tile.softmax(unit);
    if (apart)
      tile.multiply_values_apart(reinterpret_cast<const T*>(ring + place + Shape::kTileBytes),
                                 [&](int, int h, int column) {
                                   const int at = key + column;
                                   return at >= visible[h].begin && at < visible[h].end && at < end;
                                 });
    else
      tile.multiply_values(ring_s + place + Shape::kTileBytes);
  }
  wait_for_copies<0>();
  __syncthreads();  // no ring is in use

  float* const outs = reinterpret_cast<float*>(shared + Shape::kQueryBytes);
  float* const maxes = outs + kWarps * kRows * Shape::kMergeStride;
  float* const sums = maxes + kWarps * kRows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = warp * kRows + h * 8 + lane / 4;
    const float sum = quad_sum(tile.sum[0][h]);
    if (lane % 4 == 0) maxes[row] = tile.max[0][h], sums[row] = sum;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d)
      *reinterpret_cast<float2*>(outs + row * Shape::kMergeStride + d * 8 + lane % 4 * 2) =
          make_float2(tile.out[0][d][2 * h], tile.out[0][d][2 * h + 1]);
  }
  __syncthreads();
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kRows;
  // What the blocks of the cluster give this one: [blocks, share] elements, and [blocks, kRows] of a row's largest score and sum.
  const int elements = tile_rows.count * a.value_dim;
  const int share = ((elements + blocks - 1) / blocks + 3) & ~3;
  float* const inbox = reinterpret_cast<float*>(shared + Shape::kQueryBytes + Shape::kRingBytes);
  float* const inbox_rows = inbox + kRows * kDim + kMostClusterBlocks * 4;
  if constexpr (kClustered) cluster_wait();  // the others run, too
  for (int row = warp; row < tile_rows.count; row += kWarps) {
    const Row at = row_of(a, kv_head, s.unit.row_tile * kRows + row);
    const int t = at.token, hd = at.head;
    float largest = -INFINITY, sum = 0, weight[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, maxes[w * kRows + row]);
    const float base = largest == -INFINITY ? 0.0f : largest * unit;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      weight[w] = approximate_exp2(fmaf(maxes[w * kRows + row], unit, -base));
      sum += weight[w] * sums[w * kRows + row];
    }
    const auto warps_sum = [&](int r, int c) {
      float v = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float o = outs[(w * kRows + r) * Shape::kMergeStride + c];
        v += weight[w] == 0 ? 0.0f : weight[w] * o;
      }
      return v;
    };
    if constexpr (kClustered) {
      if (lane < blocks)
        store_to_block(inbox_rows + (rank * kRows + row) * 4, lane, make_float4(largest, sum, 0, 0));
      for (int c = lane * 4; c < a.value_dim; c += 128) {
        const int at = row * a.value_dim + c, owner = at / share;
        store_to_block(inbox + rank * share + at - owner * share, owner,
                       make_float4(warps_sum(row, c), warps_sum(row, c + 1), warps_sum(row, c + 2),
                                   warps_sum(row, c + 3)));
      }
      continue;
    }
    const RowEnd e = end_row(a, s, hd, largest, unit, sum);
    if (lane == 0) {
      if (s.whole)
        store_lse(a, span, t, hd, e.lse);
      else
        a.partial_lse[slot + row] = e.lse;
    }
    T* const to = static_cast<T*>(a.out.data) + row_offset(a.out, a, span, t, hd);
    for (int c = lane; c < a.value_dim; c += 32) {
      const float v = e.factor == 0 ? 0.0f : warps_sum(row, c) * e.factor;
      if (s.whole)
        to[c] = narrow<T>(v);
      else
        a.partial[(slot + row) * a.value_dim + c] = v;
    }
  }
  if constexpr (kClustered) {
    cluster_sync();  // all that is for this block has come
    // A thread an element of the output.
    for (int own = thread; own < share; own += kWarps * 32) {
      const int i = rank * share + own;
      if (i >= elements) break;
      const int row = i / a.value_dim, c = i - row * a.value_dim;
      const auto* const of_row = reinterpret_cast<const float2*>(inbox_rows) + row * 2;
      float largest = -INFINITY, sum = 0, v = 0;
#pragma unroll 4
      for (int b = 0; b < blocks; ++b) largest = fmaxf(largest, of_row[b * kRows * 2].x);
      const float base = largest == -INFINITY ? 0.0f : largest * unit;
#pragma unroll 4
      for (int b = 0; b < blocks; ++b) {
        const float2 of_block = of_row[b * kRows * 2];
        const float weight = approximate_exp2(fmaf(of_block.x, unit, -base));
        const float o = inbox[b * share + own];
        sum += weight * of_block.y;
        v += weight == 0 ? 0.0f : weight * o;
      }
      const Row at = row_of(a, kv_head, s.unit.row_tile * kRows + row);
      const RowEnd e = end_row(a, s, at.head, largest, unit, sum);
      if (c == 0) store_lse(a, span, at.token, at.head, e.lse);
      T* const to = static_cast<T*>(a.out.data) + row_offset(a.out, a, span, at.token, at.head);
      to[c] = narrow<T>(e.factor == 0 ? 0.0f : v * e.factor);
    }
  }
}

}  // namespace kf::cuda::attention
