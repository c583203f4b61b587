// Several blocks a row, and a second launch over their results, where there are few rows.

#include "backends/cuda/device/largest.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/sampling/largest.h"
#include "backends/cuda/sampling/sampling.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

struct ArgmaxArgs {
  const void* logits;
  std::int64_t logits_stride;
  int vocab;
  int splits;            // blocks of a row
  std::uint64_t* parts;  // [rows, splits]: their results; null: one block a row
  LargestOut out;
};

constexpr int kThreads = 512, kMaxSplits = 32;

__device__ void write_largest(const LargestOut& out, std::int64_t row, std::uint64_t best) {
  out.ids[row * out.ids_stride] = index_of(best);
  if (out.max) out.max[row * out.max_stride] = logit_of(best);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) argmax_kernel(const ArgmaxArgs a) {
  wait_for_predecessor();
  const std::int64_t row = blockIdx.x / a.splits;
  const int split = static_cast<int>(blockIdx.x) % a.splits;
  const T* const x = static_cast<const T*>(a.logits) + row * a.logits_stride;
  std::uint64_t best = 0;
#pragma unroll 4
  for (int i = (split * kThreads + static_cast<int>(threadIdx.x)) * W; i < a.vocab;
       i += a.splits * kThreads * W) {
    float v[W];
    load(x + i, v);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const std::uint64_t key = ranked(v[k], i + k);
      best = key > best ? key : best;
    }
  }
  best = block_max(best);
  if (threadIdx.x != 0) return;
  if (a.parts) {
    a.parts[blockIdx.x] = best;
  } else {
    write_largest(a.out, row, best);
  }
}

// A block a row.
__global__ void combine_kernel(const LargestParts p) {
  wait_for_predecessor();
  const std::uint64_t* const parts = p.parts + blockIdx.x * p.row_stride;
  std::uint64_t best = 0;
  for (int i = static_cast<int>(threadIdx.x); i < p.count; i += static_cast<int>(blockDim.x)) {
    const std::uint64_t part = parts[i * p.part_stride];
    best = part > best ? part : best;
  }
  best = block_max(best);
  if (threadIdx.x == 0) write_largest(p.out, blockIdx.x, best);
}

// Enough blocks for the device; none of less than two vectors a thread.
int splits_of(const ArgmaxParams& p, int multiprocessors) {
  const std::int64_t rows = std::max<std::int64_t>(1, p.logits.dim(0)), vectors = p.logits.dim(1) / 8;
  return static_cast<int>(std::clamp<std::int64_t>(
      std::min(2 * multiprocessors / rows, vectors / (2 * kThreads)), 1, kMaxSplits));
}

}  // namespace

void combine_largest(const LargestParts& p, std::int64_t rows, const TensorView& on, const RunContext& ctx) {
  const int threads = std::min(kThreads, (p.count + kWarp - 1) / kWarp * kWarp);
  Launch(on, ctx)(combine_kernel, dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(threads)), 0,
                  p);
}

Support argmax_supports(const ArgmaxParams& p, const PlanContext&) { return rows_fit(p.logits); }

std::size_t argmax_workspace(const ArgmaxParams& p, const PlanContext& ctx) {
  const int splits = splits_of(p, multiprocessors(ctx.caps.device.index));
  return splits == 1 ? 0 : static_cast<std::size_t>(p.logits.dim(0) * splits) * sizeof(std::uint64_t);
}

void argmax_run(const ArgmaxParams& p, const RunContext& ctx) {
  if (p.ids.numel() == 0) return;
  const int splits = splits_of(p, multiprocessors(p.logits.device.index));
  const ArgmaxArgs a{p.logits.data,
                     p.logits.stride(0),
                     static_cast<int>(p.logits.dim(1)),
                     splits,
                     splits == 1 ? nullptr : static_cast<std::uint64_t*>(ctx.workspace),
                     LargestOut::of(p.ids, p.max)};
  const std::int64_t rows = p.ids.dim(0);
  const dim3 grid(static_cast<unsigned>(rows * splits));
  with_vectors(p.logits.dtype, {&p.logits},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 Launch(p.ids, ctx)(argmax_kernel<T, W>, grid, dim3(kThreads), 0, a);
               });
  if (a.parts) combine_largest({a.parts, splits, 1, splits, a.out}, rows, p.ids, ctx);
}

}  // namespace kf::cuda
