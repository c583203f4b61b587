// What is on its way bounds these rows: both operands of a row are asked for at once, and between the passes over it they stay in
// registers as they came, so that more rows fit a multiprocessor than with their sums in f32. Everything of a row is written
// after everything of it is read, so that outputs may lie in the memory of inputs.

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/norm/args.h"
#include "backends/cuda/norm/dense.h"

namespace kf::cuda {
namespace {

constexpr int kMostVecs = 4;

struct DenseArgs {
  const void *x, *residual, *weight, *bias;                                 // residual, bias: or null
  void *out, *residual_out;                                                 // residual_out: or null
  std::int64_t x_stride, residual_stride, out_stride, residual_out_stride;  // of rows, in elements
  std::int64_t rows;
  int n;
  float eps, weight_offset;
};

// 16 bytes as they lie. Where it is forgotten what they were made to before, that is made again and takes no registers meanwhile.
struct Raw {
  uint4 bits;
  __device__ void forget() { asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w)); }
};
template <class T, int W>
__device__ void add_raw(const Raw& a, const Raw& b, float (&to)[W]) {
  float v[W];
  widen(reinterpret_cast<const Pack<T, W>&>(a.bits), to);
  widen(reinterpret_cast<const Pack<T, W>&>(b.bits), v);
#pragma unroll
  for (int k = 0; k < W; ++k) to[k] += v[k];
}

// The blocks that a multiprocessor is to hold: without a residual a thread has half as much on its way.
constexpr int dense_blocks(bool residual, int vecs) { return residual && vecs > 1 ? 2 : 3; }

template <bool kCentred, bool kResidual, class T, int kVecs>
__global__ void __launch_bounds__(kMaxRowThreads, dense_blocks(kResidual, kVecs))
    dense_norm_kernel(const DenseArgs a) {
  constexpr int W = kVectorWidth<T>;
  wait_for_predecessor();
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < a.rows;  // the others only take part in reductions
  const int n = active ? a.n : 0;
  const T* const x_row = static_cast<const T*>(a.x) + (active ? row : 0) * a.x_stride;
  const T* const residual_row =
      kResidual ? static_cast<const T*>(a.residual) + (active ? row : 0) * a.residual_stride : nullptr;
  Raw x[kVecs], residual[kResidual ? kVecs : 1];
  for_each_vector<kVecs, W>(n, [&](int j, int i) {
    x[j].bits = *reinterpret_cast<const uint4*>(x_row + i);
    if constexpr (kResidual) residual[j].bits = *reinterpret_cast<const uint4*>(residual_row + i);
  });
  const auto element = [&](int j, float(&h)[W]) {
    if constexpr (kResidual)
      add_raw<T>(x[j], residual[j], h);
    else
      widen(reinterpret_cast<const Pack<T, W>&>(x[j].bits), h);
  };
  const auto each = [&](const auto& f) {
    for_each_vector<kVecs, W>(n, [&](int j, int) {
      float h[W];
      element(j, h);
      f(h);
    });
  };
  Statistics statistics;
  if constexpr (kCentred) {
    float near = widen(*x_row);
    if constexpr (kResidual) near += widen(*residual_row);
    statistics = row_statistics_about<W>(near, a.n, a.eps, each);
  } else {
    statistics = row_statistics<false, W>(false, a.n, a.eps, each);
  }
  if (!active) return;
#pragma unroll
  for (int j = 0; j < kVecs; ++j) {
    x[j].forget();
    if constexpr (kResidual) residual[j].forget();
  }
  T* const out = static_cast<T*>(a.out) + row * a.out_stride;
  T* const residual_out = static_cast<T*>(a.residual_out) + row * a.residual_out_stride;
  for_each_vector<kVecs, W>(n, [&](int j, int i) {
    float h[W], w[W], result[W];
    element(j, h);
    load(static_cast<const T*>(a.weight) + i, w);
    if constexpr (kCentred) {
      float b[W] = {};
      if (a.bias) load(static_cast<const T*>(a.bias) + i, b);
      statistics.apply(h, w, b, result);
    } else {
      statistics.apply(h, a.weight_offset, w, result);
    }
    if (a.residual_out) store(residual_out + i, h);
    store(out + i, result);
  });
}

template <bool kCentred, class P>
void launch_dense(const P& p, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  const NormArgs norm = norm_args(p);
  DenseArgs a{norm.x,
              norm.residual,
              norm.weight,
              norm.bias,
              norm.out,
              norm.residual_out,
              *norm.x_rows.even_stride(),
              norm.residual ? *norm.residual_rows.even_stride() : 0,
              *norm.out_rows.even_stride(),
              norm.residual_out ? *norm.residual_out_rows.even_stride() : 0,
              norm.rows,
              norm.n,
              norm.eps,
              norm.weight_offset};
  const Launch launch(p.out, ctx);
  with_activation_type(p.x.dtype, [&]<class T>(std::type_identity<T>) {
    const RowShape shape = row_shape(a.n, kVectorWidth<T>, vectors_each(a.rows));
    with_vecs(shape.vecs, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
      if constexpr (kVecs > 0 && kVecs <= kMostVecs)
        launch(a.residual ? dense_norm_kernel<kCentred, true, T, kVecs>
                          : dense_norm_kernel<kCentred, false, T, kVecs>,
               shape.grid(a.rows), shape.block(), 0, a);
    });
  });
}

}  // namespace

std::int64_t dense_norm_most_elements(DType dtype) {
  return std::int64_t{kMaxRowThreads} * kMostVecs * 16 / dtype_info(dtype).block_bytes;
}
void dense_norm_run(const RmsNormParams& p, const RunContext& ctx) { launch_dense<false>(p, ctx); }
void dense_norm_run(const LayerNormParams& p, const RunContext& ctx) { launch_dense<true>(p, ctx); }

}  // namespace kf::cuda
