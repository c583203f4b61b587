// A row is read once, held in registers and normalised there. Everything of a row is written after everything of it is read, so
// that outputs may lie in the memory of inputs.

#include "backends/cuda/device/launch.cuh"
#ifndef KF_WARP
#include "backends/cuda/device/mma.cuh"
#endif
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/norm/args.h"
#include "backends/cuda/norm/norm.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

// Loads weight or bias, which are of x's dtype (kOwnDtype) or of another.
template <bool kOwnDtype, class T, int W>
__device__ void load_affine(DType dtype, const void* from, int i, float (&to)[W]) {
  if constexpr (kOwnDtype) {
    load(static_cast<const T*>(from) + i, to);
  } else {
    load_any(dtype, from, i, to);
  }
}

// kCentred: LayerNorm, else RMSNorm. kOwnDtype: weight and bias are of x's dtype.
template <bool kCentred, bool kResidual, bool kOwnDtype, class T, int W, int kVecs>
__global__ void __launch_bounds__(kMaxRowThreads, kVecs > 4 || kResidual ? 1 : row_blocks(kVecs))
    norm_kernel(const NormArgs args) {
  const NormArgs& a = first_argument(args);
  wait_for_predecessor();
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < a.rows;  // the others only take part in reductions
  const int n = active ? a.n : 0;
  HeldRow<T, W, kVecs> x{static_cast<const T*>(a.x) + (active ? a.x_rows(row) : 0), n};
  HeldRow<T, W, kResidual ? kVecs : 0> residual{};
  x.fill();
  if constexpr (kResidual) {
    residual.row = static_cast<const T*>(a.residual) + (active ? a.residual_rows(row) : 0);
    residual.n = n;
    residual.fill();
  }
  // Calls f(i, h) for each vector of h = x + residual.
  const auto for_each = [&](const auto& f) {
    for_each_vector<kVecs, W>(n, [&](int j, int i) {
      float h[W];
      x.get(j, i, h);
      if constexpr (kResidual) {
        float r[W];
        residual.get(j, i, r);
#pragma unroll
        for (int k = 0; k < W; ++k) h[k] += r[k];
      }
      f(j, i, h);
    });
  };
  const auto each = [&](const auto& f) { for_each([&](int, int, const float(&h)[W]) { f(h); }); };
  Statistics statistics;
  if constexpr (kCentred) {
    float near = widen(*x.row);
    if constexpr (kResidual) near += widen(*residual.row);
    statistics = row_statistics_about<W>(near, a.n, a.eps, each);
  } else {
    statistics = row_statistics<false, W>(false, a.n, a.eps, each);
  }
  if (!active) return;
  T* const out = static_cast<T*>(a.out) + a.out_rows(row);
  T* const residual_out =
      a.residual_out ? static_cast<T*>(a.residual_out) + a.residual_out_rows(row) : nullptr;
  for_each([&](int, int i, const float(&h)[W]) {
    float w[W], result[W];
    load_affine<kOwnDtype, T>(a.weight_dtype, a.weight, i, w);
    if constexpr (kCentred) {
      float b[W] = {};
      if (a.bias) load_affine<kOwnDtype, T>(a.bias_dtype, a.bias, i, b);
      statistics.apply(h, w, b, result);
    } else {
      statistics.apply(h, a.weight_offset, w, result);
    }
    if (residual_out) store(residual_out + i, h);
    store(out + i, result);
  });
}

#ifndef KF_WARP  // of machines that copy to shared memory while they compute
// Many very long rows: blocks stay, and the rows that they come to next are on their way to shared memory, each thread's part
// copied and read by itself; the weight is held in registers. All of x's dtype, in vectors of 16 bytes.
constexpr int kStreamed = 3;  // rows of a block in shared memory

template <bool kCentred, class T, int kVecs>
__global__ void __launch_bounds__(kMaxRowThreads) streamed_norm_kernel(const NormArgs a) {
  constexpr int W = kVectorWidth<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int padded = kVecs * static_cast<int>(blockDim.x) * W;
  T* const ring = reinterpret_cast<T*>(shared);
  wait_for_predecessor();
  HeldRow<T, W, kVecs> weight{static_cast<const T*>(a.weight), a.n};
  HeldRow<T, W, kCentred ? kVecs : 0> bias{static_cast<const T*>(a.bias), a.n};
  weight.fill();
  if (kCentred && a.bias) bias.fill();

  const auto ask = [&](std::int64_t row, int place) {
    if (row < a.rows) {
      T* const to = ring + place * padded;
      const T* const x = static_cast<const T*>(a.x) + a.x_rows(row);
      for_each_vector<kVecs, W>(a.n, [&](int, int i) { copy_async(shared_address(to + i), x + i, true); });
    }
    commit_copies();
  };
  const std::int64_t stride = gridDim.x;
  std::int64_t row = blockIdx.x;
#pragma unroll
  for (int place = 0; place < kStreamed - 1; ++place) ask(row + place * stride, place);

  int place = 0;
  for (; row < a.rows; row += stride) {
    const int beyond = place == 0 ? kStreamed - 1 : place - 1;  // the place of the row before
    ask(row + (kStreamed - 1) * stride, beyond);
    wait_for_copies<kStreamed - 1>();
    HeldRow<T, W, kVecs> x{ring + place * padded, a.n};
    x.fill();
    place = place + 1 == kStreamed ? 0 : place + 1;
    const auto for_each = [&](const auto& f) {
      for_each_vector<kVecs, W>(a.n, [&](int j, int i) {
        float h[W];
        x.get(j, i, h);
        f(j, i, h);
      });
    };
    const Statistics statistics = row_statistics<!kCentred, W>(
        kCentred, a.n, a.eps, [&](const auto& f) { for_each([&](int, int, const float(&h)[W]) { f(h); }); });
    T* const out = static_cast<T*>(a.out) + a.out_rows(row);
    for_each([&](int j, int i, const float(&h)[W]) {
      float w[W], result[W];
      weight.get(j, i, w);
      if constexpr (kCentred) {
        float b[W] = {};
        if (a.bias) bias.get(j, i, b);
        statistics.apply(h, w, b, result);
      } else {
        statistics.apply(h, a.weight_offset, w, result);
      }
      store(out + i, result);
    });
  }
}

// Whether it serves, and then launches it.
template <bool kCentred, class T>
bool launch_streamed(const Launch& launch, const NormArgs& a, int device_index) {
  constexpr int W = kVectorWidth<T>,
                kVecs = 4;  // of rows that take fewer it is no faster than the kernel above
  const RowShape shape = row_shape(a.n, W);
  if (a.residual || a.residual_out || shape.rows_per_block != 1 || shape.vecs != kVecs) return false;
  const std::size_t bytes =
      std::size_t{kStreamed} * kVecs * static_cast<std::size_t>(shape.threads_x) * W * sizeof(T);
  constexpr std::size_t kSharedOfMultiprocessor = 220 << 10;
  constexpr int kThreadsOfMultiprocessor = 1024;  // what their registers allow
  const int blocks = std::min(static_cast<int>(kSharedOfMultiprocessor / (bytes + 1024)),
                              std::min(kThreadsOfMultiprocessor / shape.threads_x, 16)) *
                     multiprocessors(device_index);
  if (blocks == 0 || a.rows < 2 * blocks) return false;
  const auto kernel = streamed_norm_kernel<kCentred, T, kVecs>;
  Launch::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  launch(kernel, dim3(static_cast<unsigned>(blocks)), shape.block(), bytes, a);
  return true;
}
#endif

template <bool kCentred, class P>
void run_norm(const P& p, const RunContext& ctx) {
  if (p.x.numel() == 0) return;
  const TensorView bias = bias_of(p);
  const NormArgs a = norm_args(p);
  const Launch launch(p.out, ctx);
  with_vectors(p.x.dtype, {&p.x, &p.residual, &p.out, &p.residual_out, &p.weight, &bias},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 const bool own = a.weight_dtype == p.x.dtype && (!a.bias || a.bias_dtype == p.x.dtype);
#ifndef KF_WARP
                 if constexpr (W == kVectorWidth<T>)
                   if (own && launch_streamed<kCentred, T>(launch, a, p.x.device.index)) return;
#endif
                 const RowShape shape = row_shape(a.n, W, a.residual ? 2 : vectors_each(a.rows));
                 with_vecs(shape.vecs, [&]<int kVecs>(std::integral_constant<int, kVecs>) {
                   const auto of = [&]<bool kOwn>(std::bool_constant<kOwn>) {
                     return p.residual.present() ? norm_kernel<kCentred, true, kOwn, T, W, kVecs>
                                                 : norm_kernel<kCentred, false, kOwn, T, W, kVecs>;
                   };
                   launch(own ? of(std::true_type()) : of(std::false_type()), shape.grid(a.rows),
                          shape.block(), 0, a);
                 });
               });
}

template <class P>
Support plain_only(const P& p) {
  if (p.residual.present()) return Support::no("residual given: this kernel takes none");
  return rows_fit(p.x);
}

}  // namespace

Support rms_norm_supports(const RmsNormParams& p, const PlanContext&) { return rows_fit(p.x); }
Support rms_norm_plain_supports(const RmsNormParams& p, const PlanContext&) { return plain_only(p); }
void rms_norm_run(const RmsNormParams& p, const RunContext& ctx) { run_norm<false>(p, ctx); }

Support layer_norm_supports(const LayerNormParams& p, const PlanContext&) { return rows_fit(p.x); }
Support layer_norm_plain_supports(const LayerNormParams& p, const PlanContext&) { return plain_only(p); }
void layer_norm_run(const LayerNormParams& p, const RunContext& ctx) { run_norm<true>(p, ctx); }

}  // namespace kf::cuda
