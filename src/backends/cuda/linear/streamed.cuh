// Products of up to 16 tokens on matrix units (mma.sync), bound by reading the weights once. A warp takes 16 rows of the weight (of
// a gated layer 8 of each) as the first operand and the tokens as the second. Weights come through a ring in shared memory, one a
// warp, as `Rows` says (streamed_rows.cuh, coded_rows.cuh); where weights are constant, the first are on their way before the
// predecessor ends. The tokens' inputs, after the prologue, lie in shared memory in x's dtype: where they are too many, each block
// of a cluster has a slice of them, and the blocks' sums are added through their shared memory; in one order, so that results
// do not depend on timing. A lane has 8 neighbouring inputs of a row, and of the tokens that it multiplies them with, in one order:
// which of the matrix unit's columns they are does not matter.
#pragma once

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/linear/prologue_epilogue.cuh"
#include "backends/cuda/linear/streamed_kernel.h"
#include "backends/cuda/linear/streamed_rows.cuh"

namespace kf::cuda::streamed {

// The largest of lanes that differ in the lowest four bits of their number.
__device__ inline std::uint64_t largest_of_16(std::uint64_t v) {
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    const std::uint64_t other = __shfl_xor_sync(0xffffffffu, v, distance);
    v = other > v ? other : v;
  }
  return v;
}

// The inputs [begin, begin + slice) of all tokens, after the prologue, eights in Rows' order; zeros beyond the last.
template <class T, class Rows, int kTokens>
__device__ void stage(const Args& a, T* inputs, int begin, int slice) {
  constexpr int W = 8, kAtOnce = 8, kWarps = Rows::kCut.warps, kThreads = kWarps * 32;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int stride = input_stride(slice), chunks = slice / W;
  const int total = a.num_tokens * chunks;
  for (int first = thread; first < total; first += kThreads * kAtOnce) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int c = first + j * kThreads, t = c / chunks, i = begin + c % chunks * W;
      v[j] = make_uint4(0, 0, 0, 0);
      if (c < total && i < a.in)
        v[j] = *reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + t * a.x_stride + i);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int c = first + j * kThreads, t = c / chunks;
      if (c < total) *reinterpret_cast<uint4*>(inputs + t * stride + c % chunks * W) = Rows::ordered(v[j]);
    }
  }
  __syncthreads();
  if (a.norm == NormKind::none && a.pre_activation == Activation::none) return;

  __shared__ float means[kTokens], inverses[kTokens], parts[2][kTokens];
  const int valid = min(slice, a.in - begin);  // none of it may be, or a part
  if (a.norm != NormKind::none) {
    const auto sum_of = [&](float* to, const auto& term) {
      for (int t = warp; t < a.num_tokens; t += kWarps) {
        float sum = 0;
        for (int i = lane * W; i < valid; i += 32 * W) {
          float v[W];
          load(inputs + t * stride + i, v);
#pragma unroll
          for (int k = 0; k < W; ++k) sum += term(t, v[k]);
        }
        sum = lanes_reduce<Sum>(sum, 32);
        if (lane == 0) to[t] = sum;
      }
      cluster_sync();
    };
    const auto total_of = [&](const float* part, int t) {
      float sum = 0;
      for (int r = 0; r < cluster_blocks(); ++r) sum += load_of_block(part + t, r);
      return sum;
    };
    if (a.norm == NormKind::layer) {
      sum_of(parts[0], [](int, float v) { return v; });
      if (thread < a.num_tokens) means[thread] = total_of(parts[0], thread) / static_cast<float>(a.in);
      __syncthreads();
    } else if (thread < kTokens) {
      means[thread] = 0;
    }
    __syncthreads();
    sum_of(parts[1], [&](int t, float v) { return (v - means[t]) * (v - means[t]); });
    if (thread < a.num_tokens) inverses[thread] = inverse_deviation(total_of(parts[1], thread), a.in, a.eps);
    __syncthreads();
  }
  for (int c = thread; c * W < valid; c += kThreads) {
    float w[W], bias[W] = {};
    if (a.norm != NormKind::none) {
      load_any(a.norm_weight_dtype, a.norm_weight, begin + c * W, w);
      if (a.norm_bias) load_any(a.norm_bias_dtype, a.norm_bias, begin + c * W, bias);
    }
    for (int t = 0; t < a.num_tokens; ++t) {
      float v[W];
      load(inputs + t * stride + c * W, v);
      if (a.norm != NormKind::none) {
        const float mean = means[t], inverse = inverses[t];
#pragma unroll
        for (int k = 0; k < W; ++k)
          v[k] =
              fmaf((v[k] - mean) * inverse, a.norm_weight_offset + w[Rows::order(k)], bias[Rows::order(k)]);
      }
      activate<T>(a.pre_activation, v);
      store(inputs + t * stride + c * W, v);
    }
  }
  __syncthreads();
}

template <class T, class Rows, int kTokens, bool kGated>
__global__ void __launch_bounds__(Rows::kCut.warps * 32, 1)
    streamed_kernel(const typename Rows::Args a, const Shape s) {
  constexpr int kTiles = kTokens / 8, kOwnRows = kGated ? kGroupRows / 2 : kGroupRows;
  constexpr int kWarps = Rows::kCut.warps, kStep = Rows::kCut.step, kRingSteps = Rows::kCut.ring_steps,
                kStepBytes = Rows::kCut.step_bytes();
  // A thread a result of a group: so many groups at a time.
  constexpr int kResults = kGroupRows * kMostTokens, kGroups = kWarps * 32 / kResults;
  static_assert(kWarps * 32 % kResults == 0);
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int rank = cluster_rank(), cluster = static_cast<int>(blockIdx.x) / s.blocks;
  const int begin = rank * s.slice, stride = input_stride(s.slice);
  unsigned char* const ring = shared + warp * kRingSteps * kStepBytes;
  float* const partials = reinterpret_cast<float*>(shared + kWarps * kRingSteps * kStepBytes);
  T* const inputs = reinterpret_cast<T*>(partials + kWarps * kTokens * kPartialStride);

  // A warp's groups, and its part of the block's slice.
  const int groups_of_block = kWarps / s.splits, first_group = cluster * groups_of_block + warp / s.splits;
  const int group_stride = s.clusters * groups_of_block;
  const int part_steps = (s.slice / kStep + s.splits - 1) / s.splits;
  const int part_begin = min(warp % s.splits * part_steps * kStep, s.slice);
  const int steps = (min(part_begin + part_steps * kStep, s.slice) - part_begin) / kStep;

  struct Group {
    int part, first;
  };
  const auto group_at = [&](int index) {
    int part = 0;
    while (index >= groups_of(a.parts[part].rows, kGated)) index -= groups_of(a.parts[part++].rows, kGated);
    return Group{part, index * kOwnRows};
  };
  // A lane's two rows of a group. Beyond the last row the last again, of which the sums are dropped.
  Rows rows;
  const auto rows_of = [&](int index) {
    const Group g = group_at(index);
    const int last = a.parts[g.part].rows - 1, first = min(g.first + lane / 4, last);
    return RowPair{g.part, kGated ? 1 : g.part, first, kGated ? first : min(g.first + lane / 4 + 8, last)};
  };
  // What is asked for next.
  int asked_group = steps > 0 ? first_group : a.num_groups, asked = 0;
  const auto find_rows = [&] {
    if (asked_group < a.num_groups) rows.find(a, rows_of(asked_group), begin + part_begin);
  };
  find_rows();
  const auto ask = [&](int place) {
    if (asked_group < a.num_groups) {
      rows.ask(a, ring + place * kStepBytes, asked, a.in - (begin + part_begin + asked * kStep));
      if (++asked == steps) {
        asked = 0;
        asked_group += group_stride;
        find_rows();
      }
    }
    commit_copies();
  };
  const auto ask_first = [&] {
#pragma unroll
    for (int place = 0; place < kRingSteps; ++place) ask(place);
  };
  if (a.constant_weights) ask_first();
  wait_for_predecessor();
  if (!a.constant_weights) ask_first();
  if (steps > 0 && first_group < a.num_groups) rows.start(a, rows_of(first_group), begin + part_begin);
  stage<T, Rows, kTokens>(a, inputs, begin, s.slice);
  rows.inspect(a, inputs, stride, s.slice);

  std::uint64_t largest = 0;  // of this thread's results
  int place = 0;
  for (int round = cluster * groups_of_block; round < a.num_groups; round += group_stride) {
    const int group = round + warp / s.splits;
    float sums[kTiles][4] = {};
    if (group < a.num_groups) {
      const T* const tokens = inputs + lane / 4 * stride + part_begin + lane % 4 * 8;
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        wait_for_copies<kRingSteps - 1>();
        const auto load_next = [&] {
          if (step + 1 < steps) {
            rows.next(a, begin + part_begin + (step + 1) * kStep);
          } else if (group + group_stride < a.num_groups) {
            rows.start(a, rows_of(group + group_stride), begin + part_begin);
          }
        };
        const int taken = place;
        place = place + 1 == kRingSteps ? 0 : place + 1;
        rows.multiply(
            a, ring + taken * kStepBytes, tokens + step * kStep, stride, sums, [&] { ask(taken); },
            load_next);
      }
      float* const to = partials + warp * kTokens * kPartialStride + lane / 4;
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to[(n * 8 + lane % 4 * 2 + i % 2) * kPartialStride + i / 2 * 8] = sums[n][i];
    }
    cluster_sync();
    // A thread a result: a row and a token, of the groups in turns of the cluster's blocks.
    const int r = thread % 16, t = thread % kResults / 16;
    for (int own = rank + thread / kResults * s.blocks; own < groups_of_block; own += kGroups * s.blocks) {
      const int index = round + own;
      if (index >= a.num_groups || t >= a.num_tokens || r >= kOwnRows) continue;
      const Group done = group_at(index);
      const Part& p = a.parts[done.part];
      const int row = done.first + r;
      if (row >= p.rows) continue;
      float sum = 0, up = 0;
#pragma unroll 4
      for (int i = 0; i < s.blocks * s.splits; ++i) {
        const int block = i / s.splits, split = i - block * s.splits;
        const float* const at = partials + ((own * s.splits + split) * kTokens + t) * kPartialStride + r;
        sum += load_of_block(at, block);
        if constexpr (kGated) up += load_of_block(at + 8, block);
      }
      float v = activated(a, p, row, sum);
      if (a.largest.parts) {
        largest = max(largest, ranked(v, row));
        continue;
      }
      if constexpr (kGated) v *= up;
      if (a.residual) v += widen(static_cast<const T*>(a.residual)[t * a.residual_stride + row]);
      static_cast<T*>(p.out)[t * p.out_stride + row] = narrow<T>(v);
    }
    cluster_sync();  // the sums have been read
  }
  wait_for_copies<0>();
  if (!a.largest.parts) return;
  const std::uint64_t v = largest_of_16(largest);
  if (thread % 16 == 0 && thread % kResults / 16 < a.num_tokens)
    a.largest.parts[(static_cast<int>(blockIdx.x) * kGroups + thread / kResults) * kMostTokens +
                    thread % kResults / 16] = v;
}

template <class T, class Rows, class F>
auto with_kernel(int tokens, bool gated, const F& f) {
  const auto of = [&]<int kTokens>() {
    return gated ? f(streamed_kernel<T, Rows, kTokens, true>) : f(streamed_kernel<T, Rows, kTokens, false>);
  };
  return tokens <= 8 ? of.template operator()<8>() : of.template operator()<16>();
}

template <class T, class Rows>
void launch(typename Rows::Args a, const Shape& s, const TensorView& on, const RunContext& ctx) {
  constexpr Cut kCut = Rows::kCut;
  const bool gated = Rows::is_gated(a);
  a.num_groups = 0;
  for (int i = 0; i < (gated ? 1 : a.num_parts); ++i) a.num_groups += groups_of(a.parts[i].rows, gated);
  if (a.num_groups == 0) return;
  const Launch launch(on, ctx);
  const std::size_t bytes = shared_bytes(kCut, s.tokens, s.slice);
  const auto blocks = static_cast<unsigned>(s.clusters * s.blocks);
  with_kernel<T, Rows>(s.tokens, gated, [&](auto kernel) {
    launch.allow_shared(reinterpret_cast<const void*>(kernel), bytes);
    launch.in_clusters(static_cast<unsigned>(s.blocks), kernel, dim3(blocks), dim3(kCut.warps * 32), bytes, a,
                       s);
  });
  if (a.largest.parts)
    combine_largest({a.largest.parts, static_cast<int>(blocks) * kCut.warps * 2 / kMostTokens, kMostTokens, 1,
                     a.largest.out},
                    a.num_tokens, on, ctx);
}

template <class T, class Rows>
int clusters(bool gated, const Shape& s) {
  const std::size_t bytes = shared_bytes(Rows::kCut, s.tokens, s.slice);
  return with_kernel<T, Rows>(s.tokens, gated, [&](auto kernel) {
    Launch::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
    return Launch::clusters_at_once(static_cast<unsigned>(s.blocks), kernel, dim3(Rows::kCut.warps * 32),
                                    bytes);
  });
}

}  // namespace kf::cuda::streamed
