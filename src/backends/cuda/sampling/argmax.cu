// Several blocks a row, and a second launch over their results where there are few rows. A logit and its index become one integer that orders as they do: the logit above, then the index, lower ones
// larger.

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/sampling/sampling.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

struct ArgmaxArgs {
  const void* logits;
  std::int32_t* ids;
  float* max;  // or null
  std::int64_t logits_stride, ids_stride, max_stride;
  int vocab;
  int splits;            // blocks of a row
  std::uint64_t* parts;  // [rows, splits]: their results; null: one block a row
};

constexpr int kThreads = 512, kMaxSplits = 32;

// As unsigned integers order: both zeros alike, every NaN above all.
__device__ std::uint32_t order_of(float v) {
  if (isnan(v)) return 0xffffffffu;
  const std::uint32_t bits = __float_as_uint(v + 0.0f);  // -0 + 0 is +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The largest of the block's, in its first thread.
__device__ std::uint64_t block_max(std::uint64_t v) {
  const auto over_lanes = [](std::uint64_t v) {
    for (int distance = 16; distance > 0; distance /= 2) {
      const std::uint64_t other = __shfl_xor_sync(0xffffffffu, v, distance);
      v = other > v ? other : v;
    }
    return v;
  };
  __shared__ std::uint64_t of_warp[32];
  v = over_lanes(v);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x >= 32) return 0;
  return over_lanes(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0);
}

template <class T>
__device__ void write_result(const ArgmaxArgs& a, std::int64_t row, std::uint64_t best) {
  const std::uint32_t id = 0xffffffffu - static_cast<std::uint32_t>(best);
  a.ids[row * a.ids_stride] = static_cast<std::int32_t>(id);
  if (a.max) a.max[row * a.max_stride] = widen((static_cast<const T*>(a.logits) + row * a.logits_stride)[id]);
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
      const std::uint64_t key =
          std::uint64_t{order_of(v[k])} << 32 | (0xffffffffu - static_cast<std::uint32_t>(i + k));
      best = key > best ? key : best;
    }
  }
  best = block_max(best);
  if (threadIdx.x != 0) return;
  if (a.parts) {
    a.parts[blockIdx.x] = best;
  } else {
    write_result<T>(a, row, best);
  }
}

// A warp a row.
template <class T>
__global__ void combine_kernel(const ArgmaxArgs a) {
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x);
  const std::uint64_t best =
      block_max(lane < a.splits ? a.parts[std::int64_t{blockIdx.x} * a.splits + lane] : 0);
  if (lane == 0) write_result<T>(a, blockIdx.x, best);
}

// Enough blocks for the device; none of less than two vectors a thread.
int splits_of(const ArgmaxParams& p, int multiprocessors) {
  const std::int64_t rows = std::max<std::int64_t>(1, p.logits.dim(0)), vectors = p.logits.dim(1) / 8;
  return static_cast<int>(std::clamp<std::int64_t>(
      std::min(2 * multiprocessors / rows, vectors / (2 * kThreads)), 1, kMaxSplits));
}

}  // namespace

Support argmax_supports(const ArgmaxParams& p, const PlanContext&) { return rows_fit(p.logits); }

std::size_t argmax_workspace(const ArgmaxParams& p, const PlanContext& ctx) {
  const int splits = splits_of(p, multiprocessors(ctx.caps.device.index));
  return splits == 1 ? 0 : static_cast<std::size_t>(p.logits.dim(0) * splits) * sizeof(std::uint64_t);
}

void argmax_run(const ArgmaxParams& p, const RunContext& ctx) {
  if (p.ids.numel() == 0) return;
  const int splits = splits_of(p, multiprocessors(p.logits.device.index));
  const ArgmaxArgs a{p.logits.data,
                     p.ids.as<std::int32_t>(),
                     p.max.present() ? p.max.as<float>() : nullptr,
                     p.logits.stride(0),
                     p.ids.stride(0),
                     p.max.present() ? p.max.stride(0) : 0,
                     static_cast<int>(p.logits.dim(1)),
                     splits,
                     splits == 1 ? nullptr : static_cast<std::uint64_t*>(ctx.workspace)};
  const auto rows = static_cast<unsigned>(p.ids.dim(0));
  const Launch launch(p.ids, ctx);
  with_vectors(p.logits.dtype, {&p.logits},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 launch(argmax_kernel<T, W>, dim3(rows * static_cast<unsigned>(splits)), dim3(kThreads), 0,
                        a);
                 if (a.parts) launch(combine_kernel<T>, dim3(rows), dim3(32), 0, a);
               });
}

}  // namespace kf::cuda
