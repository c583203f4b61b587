// A row is read once and held in registers. Its exponentials are computed twice, for their sum and for the results, which costs
// less than the registers to hold them.

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/math.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/elementwise/softmax.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

struct SoftmaxArgs {
  const void* x;
  void* out;
  float* lse;  // or null
  RowOffsets x_rows, out_rows, lse_at;
  std::int64_t rows;
  int n;
  float scale;
  // As x has rows, some of them the same.
  const void* mask;  // or null
  DType mask_dtype;
  RowOffsets mask_rows;
  std::int64_t mask_stride;  // of elements: 1, or 0 where one serves a row
};

// The score of an element under the mask.
__device__ inline float masked(const SoftmaxArgs& a, std::int64_t at, float v) {
  if (a.mask_dtype == DType::boolean)
    return static_cast<const std::uint8_t*>(a.mask)[at] ? v : -__builtin_huge_valf();
  float m[1];
  load_any(a.mask_dtype, a.mask, at, m);
  return v + m[0];
}

template <class T, int W, int kVecs, bool kMask>
__global__ void __launch_bounds__(kMaxRowThreads, row_blocks(kVecs)) softmax_kernel(const SoftmaxArgs args) {
  const SoftmaxArgs& a = first_argument(args);
  wait_for_predecessor();
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < a.rows;
  const int n = active ? a.n : 0;
  HeldRow<T, W, kVecs> x{static_cast<const T*>(a.x) + (active ? a.x_rows(row) : 0), n};
  x.fill();
  const std::int64_t mask = kMask && active ? a.mask_rows(row) : 0;
  // Calls f(i, v) for each vector, scaled and masked.
  const auto for_each = [&](const auto& f) {
    for_each_vector<kVecs, W>(n, [&](int j, int i) {
      float v[W];
      x.get(j, i, v);
#pragma unroll
      for (int k = 0; k < W; ++k) {
        v[k] *= a.scale;
        if constexpr (kMask) v[k] = masked(a, mask + (i + k) * a.mask_stride, v[k]);
      }
      f(i, v);
    });
  };

  float max = Max::kIdentity;
  for_each([&](int, const float(&v)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) max = fmaxf(max, v[k]);
  });
  max = row_reduce<Max, 0, false>(max);
  // A row of -inf has no shift that leaves it finite: e^-inf is 0 under any other.
  const float shift = max == Max::kIdentity ? 0.0f : max;
  float sum = 0;
  for_each([&](int, const float(&v)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) sum += exponential<T>(v[k] - shift);
  });
  sum = row_reduce<Sum, 1, false>(sum);
  if (!active) return;
  const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
  T* const out = static_cast<T*>(a.out) + a.out_rows(row);
  for_each([&](int i, float(&v)[W]) {
#pragma unroll
    for (int k = 0; k < W; ++k) v[k] = exponential<T>(v[k] - shift) * inverse;
    store(out + i, v);
  });
  if (a.lse && threadIdx.x == 0) a.lse[a.lse_at(row)] = shift + logf(sum);
}

}  // namespace

Support softmax_supports(const SoftmaxParams& p, const PlanContext&) { return rows_fit(p.x); }

void softmax_run(const SoftmaxParams& p, const RunContext& ctx) {
  const std::int64_t rows = num_rows(p.x);
  if (rows == 0) return;
  SoftmaxArgs a{p.x.data,
                p.out.data,
                p.lse.present() ? p.lse.as<float>() : nullptr,
                RowOffsets(p.x),
                RowOffsets(p.out),
                RowOffsets(p.lse, 0),
                rows,
                static_cast<int>(p.x.dim(-1)),
                p.scale,
                data_or_null(p.mask),
                p.mask.dtype,
                {},
                0};
  if (a.mask) {
    const TensorView m = broadcast_to(p.mask, p.x);
    a.mask_rows = RowOffsets(m);
    a.mask_stride = m.stride(-1);
  }
  const Launch launch(p.out, ctx);
  with_vectors(p.x.dtype, {&p.x, &p.out},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 const RowShape shape = row_shape(a.n, W, vectors_each(rows));
                 if (a.mask)
                   return launch(softmax_kernel<T, W, 0, true>, shape.grid(rows), shape.block(), 0, a);
                 with_vecs(shape.vecs, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
                   launch(softmax_kernel<T, W, kVecs, false>, shape.grid(rows), shape.block(), 0, a);
                 });
               });
}

}  // namespace kf::cuda
