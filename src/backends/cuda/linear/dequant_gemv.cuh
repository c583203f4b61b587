// Products with weights that are decoded in registers: of few tokens, bound by reading the weights once, and of any number of
// them, slower. For each step of its rows, a chunk of 32 elements a lane, a lane of a warp decodes one of each row.
//
// Few tokens: rows come through a ring in shared memory, one a warp, in accesses of 16 bytes wherever they begin; the tokens'
// inputs, after the prologue, lie beside it as f32, so that lanes read neighbouring quads. Without asynchronous copies rows are read
// as they lie.
#pragma once

#include "backends/cuda/device/copies.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/linear/prologue_epilogue.cuh"
#include "backends/cuda/linear/scales.cuh"
#include "backends/cuda/linear/sparse_decoder.cuh"

namespace kf::cuda::dequant {

using gemv::activated;
using gemv::kThreads;
using gemv::kWarps;

template <class D>
constexpr bool kIsSparse = std::is_same_v<D, SparseDecoder>;

template <class D>
constexpr int step_bytes() {
  if constexpr (kIsSparse<D>) {
    return 0;
  } else {
    return D::kStepBytes;
  }
}
// A row's part of a step, from any address on.
// Rows that a warp takes: of a gated FFN as many of the one weight as of the other. A wave of 64 lanes holds fewer.
template <class D>
constexpr int kRowsOf = kWarp == 32 ? D::kRows : 2;
// Blocks that a multiprocessor is to hold, of which waves of 64 lanes leave each lane half the registers: not where a chunk is large,
// nor where the inputs of 4 tokens leave room for one.
template <class D, int kT>
constexpr int kBlocksOf = kWarp == 32 || (kT < 4 && sizeof(D) <= 64) ? gemv::kBlocks : 1;
template <class D>
constexpr bool kHasRing = kCopiesAside && !kIsSparse<D>;
template <class D>
constexpr int slot_bytes() {
  return !kHasRing<D> ? 0 : (step_bytes<D>() + 15) / 16 * 16 + 16;
}
constexpr int kRingSteps = 2;

// Where sums are scaled only after a chunk, so that codes times the largest inputs stay finite.
template <class D>
constexpr float kInputFactor = D::kScaledAfter ? 0x1p-16f : 1.0f;

// Where element i of a token's inputs lies.
__device__ inline int staged_at(int i) {
  const int step = i / kStep, lane = i % kStep / kChunk, e = i % kChunk;
  return step * kStep + e / 4 * (kChunksPerStep * 4) + lane * 4 + e % 4;
}

__host__ __device__ inline int groups_of(const Args& a, int rows_per_group, int part) {
  return (a.parts[part].rows + rows_per_group - 1) / rows_per_group;
}

template <class D, int kT>
__global__ void __launch_bounds__(kThreads, (kBlocksOf<D, kT>)) gemv_kernel(const Args args) {
  const Args& a = first_argument(args);
  constexpr int kRows = kRowsOf<D>, kStepBytes = step_bytes<D>(), kSlot = slot_bytes<D>();
  constexpr int kRing = kRingSteps * kRows * kSlot;
  KF_DYNAMIC_SHARED(float4, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  unsigned char* const ring = reinterpret_cast<unsigned char*>(shared) + warp * kRing;
  float* const staged = reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(shared) + kWarps * kRing);
  const int padded = (a.in + kStep - 1) / kStep * kStep;
  // Gated, half of a warp's rows are of the one weight and half of the other.
  const int own_rows = a.gated ? kRows / 2 : kRows;

  struct Group {
    int part, first;
  };
  const auto group_at = [&](int index) {
    int part = 0;
    while (index >= groups_of(a, own_rows, part)) index -= groups_of(a, own_rows, part++);
    return Group{part, index * own_rows};
  };
  // The weight and the row of a group's r-th; beyond the last row the last again, of which the sums are dropped.
  const auto weight_of = [&](const Group& g, int r) -> const Weights& {
    return a.weights[a.gated && r >= own_rows ? 1 : g.part];
  };
  const auto row_of = [&](const Group& g, int r) {
    return std::int64_t{min(g.first + (r >= own_rows ? r - own_rows : r), a.parts[g.part].rows - 1)};
  };

  // Where the bytes of a group's rows begin, and their scales.
  const auto find_rows = [&](const Group& g, const unsigned char*(&rows)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Weights& w = weight_of(g, r);
      rows[r] = w.data + row_of(g, r) * w.row_bytes;
    }
  };
  // What is asked for next: steps of the rows of group `asked_index` before `asked` have been. Pointers are a lane's own.
  int index = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  int asked_index = index, asked = 0;
  const unsigned char* asked_rows[kRows];
  std::uint32_t ring_address = 0;
  if constexpr (kHasRing<D>) ring_address = shared_address(ring) + static_cast<std::uint32_t>(lane * 16);
  const auto ask = [&](int slot) {
    if constexpr (kHasRing<D>) {
      if (asked_index < a.num_groups) {
        if (asked == 0) {
          find_rows(group_at(asked_index), asked_rows);
#pragma unroll
          for (int r = 0; r < kRows; ++r) asked_rows[r] += lane * 16;
        }
        const std::uint32_t to = ring_address + static_cast<std::uint32_t>(slot * kRows * kSlot);
        if (kStepBytes % 16 == 0 && a.aligned && asked + kStep <= a.in) {
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int i = 0; i < kStepBytes; i += 512)
              if (i + 512 <= kStepBytes || lane * 16 < kStepBytes - i)
                copy_async_bytes(to + static_cast<std::uint32_t>(r * kSlot + i), asked_rows[r] + i, 16);
        } else {
          // Of the step, and of all that is left of a row: nothing beyond its end is read.
          const int left = static_cast<int>(std::int64_t{a.in - asked} * kStepBytes / kStep);
          const int bytes = min(left, kStepBytes);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(asked_rows[r]) % 16);
            const unsigned char* const aligned = asked_rows[r] - before;
            for (int i = 0; lane * 16 + i < before + bytes; i += 512) {
              if (lane * 16 + i + 16 <= before + left) {
                copy_async_bytes(to + static_cast<std::uint32_t>(r * kSlot + i), aligned + i, 16);
              } else {
                unsigned char* const place = ring + (slot * kRows + r) * kSlot + lane * 16 + i;
                for (int b = 0; b < 16; ++b)
                  place[b] = lane * 16 + i + b < before + left ? aligned[i + b] : 0;
              }
            }
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) asked_rows[r] += kStepBytes;
        asked += kStep;
        if (asked >= a.in) {
          asked = 0;
          asked_index += warps;
        }
      }
      commit_copies();
    }
  };
  const auto ask_first = [&] {
    for (int slot = 0; slot < kRingSteps; ++slot) ask(slot);
  };
  if (a.constant_weights) ask_first();
  wait_for_predecessor();
  if (!a.constant_weights) ask_first();
  // What codes beyond the last element are multiplied with.
  if (const int i = a.in + static_cast<int>(threadIdx.x); i < (a.in + kChunk - 1) / kChunk * kChunk)
    for (int t = 0; t < kT; ++t) staged[t * padded + staged_at(i)] = 0;
  const auto stage = [&]<int W>(std::integral_constant<int, W>) {
    gemv::stage<W>(
        a, [&](int t, int i, float(&v)[W]) { load_any(a.dtype, a.x, t * a.x_stride + i, v); },
        [&](int t, int i, const float(&v)[W]) {
          float scaled[W];
#pragma unroll
          for (int k = 0; k < W; ++k) scaled[k] = v[k] * kInputFactor<D>;
          store(staged + t * padded + staged_at(i), scaled);
        });
  };
  if (a.wide) {
    stage(std::integral_constant<int, 4>());
  } else {
    stage(std::integral_constant<int, 1>());
  }

  std::uint64_t largest = 0;  // of this lane's results
  RawScale next[kRows];       // of the step that comes next
  int scale_rows[kRows];      // where its rows' scales begin
  const auto ask_scales = [&](const Group& g, int k) {
    if constexpr (D::kScaled) {
      const Weights& first = weight_of(g, 0);
      if (k == 0) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const Weights& w = weight_of(g, r);
          scale_rows[r] = scale_row(w, static_cast<int>(row_of(g, r)));
        }
      } else if (first.group >= a.in) {
        return;  // a row's
      }
      const int mine = k + lane * kChunk;
      if (mine < a.in) {
        const int group = mine / first.group;
#pragma unroll
        for (int r = 0; r < kRows; ++r) next[r] = load_scale(weight_of(g, r), scale_rows[r], group);
      }
    }
  };
  if (index < a.num_groups) ask_scales(group_at(index), 0);
  int slot = 0;
  for (; index < a.num_groups; index += warps) {
    const Group done = group_at(index);
    const unsigned char* rows[kRows];
    int before[kRows];  // bytes of a slot before the row's first
    if constexpr (!kIsSparse<D>) {
      find_rows(done, rows);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        before[r] = static_cast<int>(reinterpret_cast<std::uintptr_t>(rows[r]) % 16);
    }
    float sums[kRows][kT] = {};
    for (int first = 0; first < a.in; first += kStep) {
      const int valid = a.in - first - lane * kChunk;
      D chunk[kRows];
      if constexpr (kIsSparse<D>) {
        if (valid > 0) {
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            chunk[r].load(weight_of(done, r), row_of(done, r), first / kChunk + lane, valid);
        }
      } else {
        if constexpr (kHasRing<D>) {
          wait_for_copies<kRingSteps - 1>();
          sync_warp();
        }
        const auto load_chunks = [&]<bool kWhole>(std::bool_constant<kWhole>) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const int begin = kWhole ? 0 : (before[r] + first / kStep * (kStepBytes % 16)) % 16;
            const float scale = D::kScaled ? scale_of(weight_of(done, r).scales_dtype, next[r]) : 0.0f;
            const unsigned char* const step = kHasRing<D>
                                                  ? ring + (slot * kRows + r) * kSlot + begin
                                                  : rows[r] + std::int64_t{first / kStep} * kStepBytes;
            chunk[r].template load<kWhole>(step, lane, valid, scale, static_cast<float>(next[r].zero));
          }
        };
        if (kStepBytes % 16 == 0 && a.aligned && first + kStep <= a.in) {
          load_chunks(std::true_type());
        } else if (valid > 0) {
          load_chunks(std::false_type());
        }
        if constexpr (kHasRing<D>) sync_warp();  // all lanes have read what is overwritten
        ask(slot);
        slot = slot + 1 == kRingSteps ? 0 : slot + 1;
        if (first + kStep < a.in) {
          ask_scales(done, first + kStep);
        } else if (index + warps < a.num_groups) {
          ask_scales(group_at(index + warps), 0);
        }
      }
      if (valid <= 0) continue;
      float chunk_sums[kRows][kT] = {};
      for_each_quad([&]<int i>(std::integral_constant<int, i>) {
        // What quads read stays apart where a large chunk leaves no registers for it.
        if constexpr (kWarp != 32 && sizeof(D) > 64) asm volatile("" ::: "memory");
        float x[kT][4];
#pragma unroll
        for (int t = 0; t < kT; ++t)
          load(staged + t * padded + first + i * (kChunksPerStep * 4) + lane * 4, x[t]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float w[4];
          chunk[r].template quad<i>(w);
#pragma unroll
          for (int t = 0; t < kT; ++t)
#pragma unroll
            for (int k = 0; k < 4; ++k) chunk_sums[r][t] = fmaf(w[k], x[t][k], chunk_sums[r][t]);
        }
      });
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int t = 0; t < kT; ++t) {
          if constexpr (D::kScaledAfter) {
            sums[r][t] = fmaf(chunk[r].scale / kInputFactor<D>, chunk_sums[r][t], sums[r][t]);
          } else {
            sums[r][t] += chunk_sums[r][t];
          }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int t = 0; t < kT; ++t) sums[r][t] = lanes_reduce<Sum>(sums[r][t], kWarp);

    const gemv::Part& p = a.parts[done.part];
    // A lane a result.
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int t = 0; t < kT; ++t) {
        const int row = done.first + r;
        if (lane != r * kT + t || r >= own_rows || row >= p.rows || t >= a.num_tokens) continue;
        float v = activated(a, p, row, sums[r][t]);
        if (a.largest.parts) {
          largest = max(largest, ranked(v, row));
          continue;
        }
        if (kRows > 1 && a.gated) v *= sums[r % (kRows / 2) + kRows / 2][t];
        float residual[1] = {0};
        if (a.residual) load_any(a.dtype, a.residual, t * a.residual_stride + row, residual);
        store_any(a.dtype, p.out, t * p.out_stride + row, v + residual[0]);
      }
  }
  if (a.largest.parts && lane < kRows * kT)
    a.largest.parts[(static_cast<int>(blockIdx.x) * kWarps + warp) * (kRows * kT) + lane] = largest;
}

template <class D, int kT>
void launch_gemv_tokens(Args a, const TensorView& on, const RunContext& ctx) {
  a.num_groups = 0;
  const int own_rows = a.gated ? kRowsOf<D> / 2 : kRowsOf<D>;
  for (int i = 0; i < (a.gated ? 1 : a.num_parts); ++i) a.num_groups += groups_of(a, own_rows, i);
  if (a.num_groups == 0) return;
  const auto kernel = gemv_kernel<D, kT>;
  const std::size_t bytes = static_cast<std::size_t>(staged_bytes(kT, a.in)) +
                            std::size_t{kWarps} * kRingSteps * kRowsOf<D> * slot_bytes<D>();
  const int blocks_fit =
      std::max(1, std::min(kBlocksOf<D, kT>, static_cast<int>(kMostShared / (bytes + 1024))));
  const int most_warps = multiprocessors(on.device.index) * blocks_fit * kWarps;
  const int rounds = (a.num_groups + most_warps - 1) / most_warps;
  const int warps = (a.num_groups + rounds - 1) / rounds, blocks = (warps + kWarps - 1) / kWarps;
  const Launch launch(on, ctx);
  launch.allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, a);
  if (a.largest.parts)
    combine_largest({a.largest.parts, blocks * kWarps * kRowsOf<D>, kT, 1, a.largest.out}, a.num_tokens, on,
                    ctx);
}

template <class D>
void launch_gemv_as(const Args& a, const TensorView& on, const RunContext& ctx) {
  if (a.num_tokens == 1) return launch_gemv_tokens<D, 1>(a, on, ctx);
  if (a.num_tokens == 2) return launch_gemv_tokens<D, 2>(a, on, ctx);
  return launch_gemv_tokens<D, 4>(a, on, ctx);
}

// ---- Any number of tokens: a block's outputs are kTile tokens by kTile rows of the weight, of which it decodes kDepth columns at
// a time into shared memory as f32: kShare threads a chunk.

constexpr int kTile = 64, kDepth = kMostShared >= 128 << 10 ? 128 : 32, kPadded = kTile + 4, kEach = 4;
constexpr int kShare = kThreads * kChunk / (kTile * kDepth);
static_assert(kTile * kDepth * kShare == kThreads * kChunk && kTile * kTile == kThreads * kEach * kEach);

template <class D>
__global__ void __launch_bounds__(kThreads) gemm_kernel(const Args args) {
  const Args& a = first_argument(args);
  KF_DYNAMIC_SHARED(float4, shared);
  float* const w_tile = reinterpret_cast<float*>(shared);  // [kDepth, kPadded]
  float* const x_tile = w_tile + kDepth * kPadded;         // likewise
  wait_for_predecessor();
  const gemv::Part& p = a.parts[0];
  const Weights& w = a.weights[0];
  const int first_row = static_cast<int>(blockIdx.x) * kTile;
  const int first_token = static_cast<int>(blockIdx.y) * kTile;
  const int thread = static_cast<int>(threadIdx.x);
  // What it decodes.
  const int own = thread % kTile, own_chunk = thread / kTile % (kDepth / kChunk);
  const int own_share = thread / (kTile * (kDepth / kChunk));
  const std::int64_t own_row = min(first_row + own, p.rows - 1);
  const int x0 = thread % (kTile / kEach) * kEach, w0 = thread / (kTile / kEach) * kEach;
  float sums[kEach][kEach] = {};  // of tokens x0 on by rows w0 on
  for (int first = 0; first < a.in; first += kDepth) {
    __syncthreads();
    const int k = first + own_chunk * kChunk, valid = a.in - k;
    D chunk;
    if (valid > 0) {
      if constexpr (kIsSparse<D>) {
        chunk.load(w, own_row, k / kChunk, valid);
      } else {
        RawScale s;
        if constexpr (D::kScaled) s = load_scale(w, scale_row(w, static_cast<int>(own_row)), k / w.group);
        chunk.template load<false>(w.data + own_row * w.row_bytes, k / kChunk, valid,
                                   scale_of(w.scales_dtype, s), static_cast<float>(s.zero));
      }
    }
    for_each_quad([&]<int i>(std::integral_constant<int, i>) {
      if (kShare > 1 && i % kShare != own_share) return;
      float v[4] = {};
      if (valid > 0) chunk.template quad<i>(v);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (D::kScaledAfter) v[e] *= chunk.scale;
        w_tile[(own_chunk * kChunk + 4 * i + e) * kPadded + own] = valid > 4 * i + e ? v[e] : 0.0f;
      }
    });
    for (int i = thread; i < kTile * kDepth; i += kThreads) {
      const int t = first_token + i / kDepth, column = first + i % kDepth;
      float x[1] = {0};
      if (t < a.num_tokens && column < a.in) load_any(a.dtype, a.x, t * a.x_stride + column, x);
      x_tile[i % kDepth * kPadded + i / kDepth] = x[0];
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      float x[kEach], v[kEach];
      load(x_tile + d * kPadded + x0, x);
      load(w_tile + d * kPadded + w0, v);
#pragma unroll
      for (int t = 0; t < kEach; ++t)
#pragma unroll
        for (int r = 0; r < kEach; ++r) sums[t][r] = fmaf(x[t], v[r], sums[t][r]);
    }
  }
#pragma unroll
  for (int t = 0; t < kEach; ++t)
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const int token = first_token + x0 + t, row = first_row + w0 + r;
      if (token >= a.num_tokens || row >= p.rows) continue;
      float v = activated(a, p, row, sums[t][r]), residual[1] = {0};
      if (a.residual) load_any(a.dtype, a.residual, token * a.residual_stride + row, residual);
      store_any(a.dtype, p.out, token * p.out_stride + row, v + residual[0]);
    }
}

template <class D>
void launch_gemm_as(const Args& a, const TensorView& on, const RunContext& ctx) {
  if (a.parts[0].rows == 0) return;
  constexpr std::size_t kBytes = std::size_t{2} * kDepth * kPadded * sizeof(float);
  const Launch launch(on, ctx);
  launch.allow_shared(reinterpret_cast<const void*>(gemm_kernel<D>), kBytes);
  const auto tiles = [](int n) { return static_cast<unsigned>((n + kTile - 1) / kTile); };
  launch(gemm_kernel<D>, dim3(tiles(a.parts[0].rows), tiles(a.num_tokens)), dim3(kThreads), kBytes, a);
}

}  // namespace kf::cuda::dequant

// The launches of one kind of weights; with_decoder(dtype, f) calls f(std::type_identity<D>()).
#define KF_DEFINE_DEQUANT(kind, with_decoder)                                             \
  namespace kf::cuda::dequant {                                                           \
  void launch_gemv_##kind(const Args& a, const TensorView& on, const RunContext& ctx) {   \
    with_decoder(a.weights[0].dtype,                                                      \
                 [&]<class D>(std::type_identity<D>) { launch_gemv_as<D>(a, on, ctx); }); \
  }                                                                                       \
  void launch_gemm_##kind(const Args& a, const TensorView& on, const RunContext& ctx) {   \
    with_decoder(a.weights[0].dtype,                                                      \
                 [&]<class D>(std::type_identity<D>) { launch_gemm_as<D>(a, on, ctx); }); \
  }                                                                                       \
  }
