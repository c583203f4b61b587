// Products of few tokens, bound by reading the weights once. Each warp takes kRows rows of the weight (of gate and up alike)
// and all tokens; the tokens' inputs, after the prologue, lie in shared memory as f32. Weights come through a ring in shared
// memory, one a warp, of which each lane reads what it has asked for itself: registers would not hold enough of them on their
// way. Where weights are constant, the first are, before the predecessor ends. Without asynchronous copies they are read as they lie.
#pragma once

#include "backends/cuda/device/copies.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/linear/prologue_epilogue.cuh"

namespace kf::cuda::gemv {

// Of a vector of W inputs, the first half lies in one plane and the second in another, so that the accesses of neighbouring
// lanes, 16 bytes each, are neighbours.
template <int W>
struct Staged {
  float* base;
  int in;  // a multiple of W
  __device__ float* token(int t) const { return base + t * in; }
  __device__ void put(int t, int i, const float (&v)[W]) const {
    if constexpr (W == 8) {
      float lower[4], upper[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        lower[k] = v[k];
        upper[k] = v[k + 4];
      }
      store(token(t) + i / 2, lower);
      store(token(t) + in / 2 + i / 2, upper);
    } else {
      store(token(t) + i, v);
    }
  }
  __device__ void get(int t, int i, float (&v)[W]) const {
    if constexpr (W == 8) {
      float lower[4], upper[4];
      load(token(t) + i / 2, lower);
      load(token(t) + in / 2 + i / 2, upper);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        v[k] = lower[k];
        v[k + 4] = upper[k];
      }
    } else {
      load(token(t) + i, v);
    }
  }
};

// A warp's rows: kRows of one part.
struct Group {
  int part, first;
};
template <int kRows>
__host__ __device__ inline int groups_of(const Part& p) {
  return (p.rows + kRows - 1) / kRows;
}
template <int kRows>
__device__ inline Group group_at(const Args& a, int index) {
  int part = 0;
  while (index >= groups_of<kRows>(a.parts[part])) index -= groups_of<kRows>(a.parts[part++]);
  return {part, index * kRows};
}

// A warp's ring: steps of one vector a lane of each of its rows. Rows that cannot be read 16 bytes at a time have none.
template <class T, int W, int kStreams>
struct Ring {
  static constexpr bool kUsed = kCopiesAside && sizeof(T) * W == 16;
  static constexpr int kSteps = 8 / kStreams, kBytesOfStep = kWarp * 16;
  static constexpr std::size_t kBytes = kUsed ? std::size_t{kSteps} * kStreams * kBytesOfStep : 0;
};

// Blocks stay for several groups a warp, so that the inputs are staged once.
template <class T, int W, int kTokens, int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads, kBlocks) gemv_kernel(const Args args) {
  const Args& a = first_argument(args);
  constexpr int kStreams = kGated ? 2 * kRows : kRows;  // weight rows that the warp reads
  using R = Ring<T, W, kStreams>;
  KF_DYNAMIC_SHARED(float4, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(gridDim.x) * kWarps;
  unsigned char* const ring = reinterpret_cast<unsigned char*>(shared) + warp * R::kBytes + lane * 16;
  const Staged<W> staged{
      reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(shared) + kWarps * R::kBytes), a.in};
  int index = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);

  // The weight rows that a group reads. Beyond the last row the last again, of which the sums are dropped.
  struct Rows {
    const T* at[kStreams];
  };
  const auto rows_of = [&](const Group& g) {
    const Part& p = a.parts[g.part];
    Rows rows;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t row = min(g.first + r, p.rows - 1);
      rows.at[r] = static_cast<const T*>(p.weight) + row * p.weight_stride + lane * W;
      if constexpr (kGated) rows.at[kRows + r] = static_cast<const T*>(a.up) + row * a.up_stride + lane * W;
    }
    return rows;
  };

  // What is asked for next: `asked` elements of the rows of group `asked_index` have been.
  int asked_index = index, asked = 0;
  Rows asked_rows{};
  if (index < a.num_groups) asked_rows = rows_of(group_at<kRows>(a, index));
  const auto ask = [&](int step) {
    if constexpr (R::kUsed) {
      if (asked_index < a.num_groups) {
        if (asked + lane * W < a.in) {
#pragma unroll
          for (int s = 0; s < kStreams; ++s)
            copy_async(shared_address(ring + (step * kStreams + s) * R::kBytesOfStep),
                       asked_rows.at[s] + asked, true);
        }
        asked += kWarp * W;
        if (asked >= a.in) {
          asked = 0;
          asked_index += warps;
          if (asked_index < a.num_groups) asked_rows = rows_of(group_at<kRows>(a, asked_index));
        }
      }
      commit_copies();
    }
  };
  const auto ask_first = [&] {
#pragma unroll
    for (int step = 0; step < R::kSteps; ++step) ask(step);
  };
  if (a.constant_weights) ask_first();
  wait_for_predecessor();
  if (!a.constant_weights) ask_first();
  stage<W>(
      a, [&](int t, int i, float(&v)[W]) { load(static_cast<const T*>(a.x) + t * a.x_stride + i, v); },
      [&](int t, int i, const float(&v)[W]) { staged.put(t, i, v); });

  std::uint64_t largest = 0;  // of this lane's results
  int step = 0;
  for (; index < a.num_groups; index += warps) {
    const Group done = group_at<kRows>(a, index);
    Rows rows{};
    if constexpr (!R::kUsed) rows = rows_of(done);
    float sums[kStreams][kTokens] = {};
    const auto multiply = [&](int i, const Pack<T, W>(&packs)[kStreams]) {
      float w[kStreams][W];
#pragma unroll
      for (int s = 0; s < kStreams; ++s) widen(packs[s], w[s]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float x[W];
        staged.get(t, i, x);
#pragma unroll
        for (int s = 0; s < kStreams; ++s)
#pragma unroll
          for (int k = 0; k < W; ++k) sums[s][t] = fmaf(w[s][k], x[k], sums[s][t]);
      }
    };
    int first = 0;
    if constexpr (!kCopiesAside) {
      // Without a condition, so that several steps' are on their way.
#pragma unroll 4
      for (; first + kWarp * W <= a.in; first += kWarp * W) {
        Pack<T, W> packs[kStreams];
#pragma unroll
        for (int s = 0; s < kStreams; ++s) packs[s] = load_pack<W>(rows.at[s] + first);
        multiply(first + lane * W, packs);
      }
    }
#pragma unroll 4
    for (; first < a.in; first += kWarp * W) {
      const int i = first + lane * W;
      Pack<T, W> packs[kStreams];
      if constexpr (R::kUsed) {
        wait_for_copies<R::kSteps - 1>();
#pragma unroll
        for (int s = 0; s < kStreams; ++s)
          packs[s] = load_pack<W>(reinterpret_cast<const T*>(ring + (step * kStreams + s) * R::kBytesOfStep));
        ask(step);
        step = step + 1 == R::kSteps ? 0 : step + 1;
        if (i >= a.in) continue;
      } else {
        if (i >= a.in) continue;
#pragma unroll
        for (int s = 0; s < kStreams; ++s) packs[s] = load_pack<W>(rows.at[s] + first);
      }
      multiply(i, packs);
    }
#pragma unroll
    for (int s = 0; s < kStreams; ++s)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sums[s][t] = lanes_reduce<Sum>(sums[s][t], kWarp);

    const Part& p = a.parts[done.part];
    // A lane a result.
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int row = done.first + r;
        if (lane != r * kTokens + t || row >= p.rows || t >= a.num_tokens) continue;
        float v = activated(a, p, row, sums[r][t]);
        if (a.largest.parts) {
          largest = max(largest, ranked(v, row));
          continue;
        }
        if constexpr (kGated) v *= sums[kRows + r][t];
        if (a.residual) v += widen(static_cast<const T*>(a.residual)[t * a.residual_stride + row]);
        static_cast<T*>(p.out)[t * p.out_stride + row] = narrow<T>(v);
      }
  }
  if (a.largest.parts && lane < kRows * kTokens)
    a.largest.parts[(blockIdx.x * kWarps + warp) * (kRows * kTokens) + lane] = largest;
}

template <class T, int W, int kTokens, int kRows, bool kGated>
void launch_rows(Args a, const TensorView& on, const RunContext& ctx) {
  a.num_groups = 0;
  for (int i = 0; i < a.num_parts; ++i) a.num_groups += groups_of<kRows>(a.parts[i]);
  if (a.num_groups == 0) return;
  const auto kernel = gemv_kernel<T, W, kTokens, kRows, kGated>;
  using R = Ring<T, W, kGated ? 2 * kRows : kRows>;
  const std::size_t bytes = shared_bytes(kTokens, a.in) + kWarps * R::kBytes;
  // As many warps as run at once, or fewer: each with as many groups as every other.
  const int blocks_fit = std::max(1, std::min(kBlocks, static_cast<int>(kMostShared / (bytes + 1024))));
  const int most_warps = multiprocessors(on.device.index) * blocks_fit * kWarps;
  const int rounds = (a.num_groups + most_warps - 1) / most_warps;
  const int warps = (a.num_groups + rounds - 1) / rounds;
  const Launch launch(on, ctx);
  launch.allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  const int blocks = (warps + kWarps - 1) / kWarps;
  launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, a);
  if (a.largest.parts)
    combine_largest({a.largest.parts, blocks * kWarps * kRows, kTokens, 1, a.largest.out}, a.num_tokens, on,
                    ctx);
}

template <class T, int kTokens>
void launch_tokens(const Args& a, const TensorView& on, const RunContext& ctx) {
  constexpr int kWide = kVectorWidth<T>;
  if (!a.wide)
    return a.up ? launch_rows<T, 1, kTokens, 1, true>(a, on, ctx)
                : launch_rows<T, 1, kTokens, 1, false>(a, on, ctx);
  // Rows that share the tokens' inputs save reads of shared memory, which more than two tokens would be bound by.
  constexpr int kRows = kTokens > 2 ? 2 : 1;
  return a.up ? launch_rows<T, kWide, kTokens, kRows, true>(a, on, ctx)
              : launch_rows<T, kWide, kTokens, kRows, false>(a, on, ctx);
}

template <class T>
void launch(const Args& a, const TensorView& on, const RunContext& ctx) {
  if (a.num_tokens == 1) return launch_tokens<T, 1>(a, on, ctx);
  if (a.num_tokens == 2) return launch_tokens<T, 2>(a, on, ctx);
  return launch_tokens<T, 4>(a, on, ctx);
}

}  // namespace kf::cuda::gemv
