#include "backends/cpu/sampling/embedding.h"

#include <algorithm>

#include "backends/cpu/parallel.h"
#include "backends/cpu/simd/convert_row.h"

namespace kf::cpu {
namespace {

// A row in f32, part by part, scaled and rounded once.
void scale_row(DType from, const void* src, DType to, void* dst, std::int64_t n, float scale) {
  constexpr std::int64_t kPart = 256;  // a multiple of every block
  float part[kPart];
  const DTypeInfo& info = dtype_info(from);
  for (std::int64_t i = 0; i < n; i += kPart) {
    const std::int64_t count = std::min(kPart, n - i);
    convert_row(from, static_cast<const std::byte*>(src) + i / info.block_elems * info.block_bytes,
                DType::f32, part, count);
    for (std::int64_t k = 0; k < count; ++k) part[k] *= scale;
    convert_row(DType::f32, part, to, static_cast<std::byte*>(dst) + i * dtype_info(to).block_bytes, count);
  }
}

}  // namespace

void embedding_run(const EmbeddingParams& p, const RunContext& ctx) {
  const std::int64_t hidden = p.table.dim(1);
  if (hidden == 0) return;
  parallel_ranges(ctx.num_threads, p.ids.dim(0), hidden, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t id = p.ids.as<std::int32_t>()[t * p.ids.stride(0)];
      const void* const from = p.table.at(id * p.table.stride(0));
      void* const to = p.out.at(t * p.out.stride(0));
      if (p.scale == 1.0f)
        convert_row(p.table.dtype, from, p.out.dtype, to, hidden);
      else
        scale_row(p.table.dtype, from, p.out.dtype, to, hidden, p.scale);
    }
  });
}

}  // namespace kf::cpu
