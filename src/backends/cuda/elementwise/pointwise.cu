// out = f(a) or f(a, b), element by element. Contiguous operands are one long row.

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/math.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/elementwise/pointwise.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

// Functions of vectors, for results that are kept as Out; in place.
struct Binary {
  BinaryKind kind;
  template <class Out, int W>
  __device__ void operator()(float (&a)[W], const float (&b)[W]) const {
#pragma unroll
    for (int k = 0; k < W; ++k) a[k] = kind == BinaryKind::add ? a[k] + b[k] : a[k] * b[k];
  }
};
struct Activated {
  Activation kind;
  template <class Out, int W>
  __device__ void operator()(float (&a)[W], const float (&)[W]) const {
    activate<Out>(kind, a);
  }
};
struct Gated {
  Activation kind;
  template <class Out, int W>
  __device__ void operator()(float (&a)[W], const float (&b)[W]) const {
    activate<Out>(kind, a);
#pragma unroll
    for (int k = 0; k < W; ++k) a[k] *= b[k];
  }
};

struct PointwiseArgs {
  const void *a, *b;  // b: or null
  void* out;
  RowOffsets a_rows, b_rows, out_rows;
  std::int64_t n;           // elements of a row
  unsigned blocks_per_row;  // each of kThreads vectors
};

// A vector a thread: many small blocks keep more loads in flight than few with more work each.
constexpr int kThreads = 256;

// kRows: there is more than one, so that a block has to find its own.
template <class T, int W, bool kRows, class F>
__global__ void pointwise_kernel(const PointwiseArgs args, const F f) {
  const PointwiseArgs& p = first_argument(args);
  wait_for_predecessor();
  unsigned row = 0, block = blockIdx.x;
  if constexpr (kRows) row = block / p.blocks_per_row, block -= row * p.blocks_per_row;
  const std::int64_t i = (std::int64_t{block} * kThreads + threadIdx.x) * W;
  if (i >= p.n) return;
  const auto of_row = [&](const void* from, const RowOffsets& rows) {
    return static_cast<const T*>(from) + (kRows ? rows(row) : 0) + i;
  };
  const Pack<T, W> a = load_pack<W>(of_row(p.a, p.a_rows));
  float va[W], vb[W] = {};
  if (p.b) load(of_row(p.b, p.b_rows), vb);
  widen(a, va);
  f.template operator()<T>(va, vb);
  store(const_cast<T*>(of_row(p.out, p.out_rows)), va);
}

template <class F>
void run_pointwise(const TensorView& a, const TensorView& b, const TensorView& out, const F& f,
                   const RunContext& ctx) {
  if (out.numel() == 0) return;
  const bool flat = a.is_contiguous() && out.is_contiguous() && (!b.present() || b.is_contiguous());
  const auto as_row = [&](const TensorView& t) {
    return flat && t.present() ? TensorView::contiguous(t.data, t.dtype, {t.numel()}, t.device) : t;
  };
  const TensorView ra = as_row(a), rb = as_row(b), rout = as_row(out);
  const Launch launch(out, ctx);
  with_activation_type(out.dtype, [&]<class T>(std::type_identity<T>) {
    constexpr int kWide = kVectorWidth<T>;
    const auto go = [&]<int W>(std::integral_constant<int, W>, const TensorView& from,
                               const TensorView& second, const TensorView& to) {
      PointwiseArgs p{from.data,          data_or_null(second), to.data,    RowOffsets(from),
                      RowOffsets(second), RowOffsets(to),       to.dim(-1), 0};
      p.blocks_per_row = static_cast<unsigned>((p.n + kThreads * W - 1) / (kThreads * W));
      const std::int64_t rows = num_rows(to);
      launch(rows > 1 ? pointwise_kernel<T, W, true, F> : pointwise_kernel<T, W, false, F>,
             dim3(static_cast<unsigned>(rows * p.blocks_per_row)), dim3(kThreads), 0, p, f);
    };
    const auto wide = [&](const TensorView& t) { return aligned_rows(t, kWide); };
    if (wide(ra) && wide(rb) && wide(rout)) return go(std::integral_constant<int, kWide>(), ra, rb, rout);
    // The whole vectors of one long row, and what is left.
    const std::int64_t n = rout.dim(-1), whole = n / kWide * kWide;
    const auto part = [&](const TensorView& t, std::int64_t begin, std::int64_t end) {
      return t.present() ? t.slice(0, begin, end) : t;
    };
    if (flat && whole > 0 && wide(part(ra, 0, whole)) && wide(part(rb, 0, whole)) &&
        wide(part(rout, 0, whole))) {
      go(std::integral_constant<int, kWide>(), part(ra, 0, whole), part(rb, 0, whole), part(rout, 0, whole));
      return go(std::integral_constant<int, 1>(), part(ra, whole, n), part(rb, whole, n),
                part(rout, whole, n));
    }
    go(std::integral_constant<int, 1>(), ra, rb, rout);
  });
}

}  // namespace

Support binary_supports(const BinaryParams& p, const PlanContext&) { return blocks_fit(p.out); }
void binary_run(const BinaryParams& p, const RunContext& ctx) {
  run_pointwise(p.a, p.b, p.out, Binary{p.kind}, ctx);
}

Support activation_supports(const ActivationParams& p, const PlanContext&) { return blocks_fit(p.out); }
void activation_run(const ActivationParams& p, const RunContext& ctx) {
  run_pointwise(p.x, {}, p.out, Activated{p.kind}, ctx);
}

Support gated_activation_supports(const GatedActivationParams& p, const PlanContext&) {
  return blocks_fit(p.out);
}
void gated_activation_run(const GatedActivationParams& p, const RunContext& ctx) {
  run_pointwise(p.gate, p.up, p.out, Gated{p.kind}, ctx);
}

}  // namespace kf::cuda
