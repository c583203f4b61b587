#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/sampling/sampling.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

struct EmbeddingArgs {
  const std::int32_t* ids;
  const void* table;
  void* out;
  std::int64_t ids_stride, table_stride, out_stride, vocab;
  int hidden;
  float scale;
  TableFault* fault;
};

// A block a token.
template <class From, class To, int W>
__global__ void embedding_kernel(const EmbeddingArgs args) {
  const EmbeddingArgs& a = first_argument(args);
  wait_for_predecessor();
  const std::int64_t t = blockIdx.x;
  const std::int32_t id = a.ids[t * a.ids_stride];
  if (id < 0 || id >= a.vocab) {
    if (threadIdx.x == 0) note_fault(a.fault, TableFault::ids, t, id, a.vocab);
    return;
  }
  const From* const from = static_cast<const From*>(a.table) + id * a.table_stride;
  To* const to = static_cast<To*>(a.out) + t * a.out_stride;
  for_each_vector<0, W>(a.hidden, [&](int, int i) {
    float v[W];
    load(from + i, v);
#pragma unroll
    for (float& x : v) x *= a.scale;
    store(to + i, v);
  });
}

}  // namespace

Support embedding_supports(const EmbeddingParams& p, const PlanContext&) {
  if (const Support s = plain_dtype("table", p.table); !s) return s;
  return rows_fit(p.out);
}

void embedding_run(const EmbeddingParams& p, const RunContext& ctx) {
  if (p.out.numel() == 0) return;
  const Launch launch(p.out, ctx);
  const EmbeddingArgs a{p.ids.as<std::int32_t>(),
                        p.table.data,
                        p.out.data,
                        p.ids.stride(0),
                        p.table.stride(0),
                        p.out.stride(0),
                        p.table.dim(0),
                        static_cast<int>(p.out.dim(1)),
                        p.scale,
                        launch.fault()};
  with_activation_type(p.table.dtype, [&]<class From>(std::type_identity<From>) {
    with_activation_type(p.out.dtype, [&]<class To>(std::type_identity<To>) {
      constexpr int kWide = std::min(kVectorWidth<From>, kVectorWidth<To>);
      const unsigned threads =
          static_cast<unsigned>(std::clamp<std::int64_t>(a.hidden / kWide, kWarp, 256) / kWarp * kWarp);
      const dim3 grid(static_cast<unsigned>(p.ids.dim(0)));
      if (aligned_rows(p.table, kWide) && aligned_rows(p.out, kWide)) {
        launch(embedding_kernel<From, To, kWide>, grid, dim3(threads), 0, a);
      } else {
        launch(embedding_kernel<From, To, 1>, grid, dim3(threads), 0, a);
      }
    });
  });
}

}  // namespace kf::cuda
