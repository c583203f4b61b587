#include "backends/cuda/attention/attention.h"

#include <fmt/format.h>

#include "backends/cuda/attention/launches.h"
#include "backends/cuda/attention/plan.h"
#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/supports.h"
#include "core/half.h"
#include "kf/error.h"

namespace kf::cuda {
namespace attention {
namespace {

template <class S>
Tiles tiles_of(bool few) {
  return {S::kRows, S::kBlocksPerSm, few, S::kSharedBytes};
}
template <template <int> class S>
Tiles tiles_of(std::int64_t dim, bool few) {
  return dim <= 64 ? tiles_of<S<64>>(few) : dim <= 128 ? tiles_of<S<128>>(few) : tiles_of<S<256>>(few);
}

Tiles flash2_tiles(const AttentionParams& p, const Args& a) {
  const std::int64_t dim = largest_dim(p);
  if (has_few_rows(a)) return tiles_of<DecodeShape>(dim, true);
  return tiles_of<Flash2Shape>(dim, false);
}

// The most keys of a sequence.
std::int64_t most_keys(const Args& a) {
  return a.block_tables ? std::int64_t{a.max_pages} * a.page_size : a.dense ? a.seqlen_k : a.total_k;
}

// Blocks of a cluster for the decode kernel, so that they fill the GPU; 0 where sequences may be too long for one.
int cluster_blocks_for(const Args& a, std::int64_t units, std::int64_t slots, const DeviceCaps& caps) {
  if (!has_clusters(caps)) return 0;
  int blocks = 1;
  while (2 * blocks <= kMostClusterBlocks && 2 * blocks * units <= slots) blocks *= 2;
  return most_keys(a) <= std::int64_t{blocks} * kMostKeysOfBlock ? blocks : 0;
}

// 16 bytes at a time: all strides but the last.
Support has_chunks(const char* name, const TensorView& t) {
  for (int i = 0; i + 1 < t.rank; ++i)
    if (t.dim(i) > 1 && (t.stride(i) % 8 != 0 || t.stride(i) < 0))
      return Support::no(
          fmt::format("{}: stride {}: this kernel takes rows in chunks of 16 bytes", name, t.stride(i)));
  return Support::yes();
}

// Places are counted in chunks of 16 bytes, in 32 bits.
Support within_reach(const char* name, const TensorView& t) {
  std::int64_t last = 0;
  for (int i = 0; i + 1 < t.rank; ++i) last += (t.dim(i) - 1) * t.stride(i);
  if (last >= std::int64_t{1} << 35)
    return Support::no(fmt::format("{}: more than 64 GiB: this kernel reaches so far", name));
  return Support::yes();
}

bool is_aligned(const TensorView& t) { return reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0; }

template <class T>
void launch_tiles(const AttentionParams& p, const State& s, const RunContext& ctx) {
  const std::int64_t dim = largest_dim(p);
  const int rows = (s.few_rows ? tiles_of<DecodeShape>(dim, true) : tiles_of<Flash2Shape>(dim, false)).rows;
  const Args a = args_for(p, s, rows, ctx);
  const Grid grid = grid_of(a, s, rows);
  if (grid.units == 0) return;
  const auto launch = [&]<int kDim>() {
    if (s.few_rows) return launch_decode<T, kDim>(a, grid, p.q, ctx);
    return launch_flash2<T, kDim>(a, grid, p.q, ctx);
  };
  if (dim <= 64) return launch.template operator()<64>();
  return dim <= 128 ? launch.template operator()<128>() : launch.template operator()<256>();
}

}  // namespace
}  // namespace attention

using namespace attention;

Support flash2_supports(const AttentionParams& p, const PlanContext& ctx) {
  if (const Support s = fits(p); !s) return s;
  if (p.q.dtype == DType::f32) return Support::no("q f32: this kernel takes f16 and bf16");
  if (p.k.dtype != p.q.dtype)
    return Support::no(fmt::format("k {} with q {}: this kernel takes keys and values of q's dtype",
                                   dtype_name(p.k.dtype), dtype_name(p.q.dtype)));
  for (const TensorView* t : {&p.q, &p.v})
    if (t->dim(-1) % 8 != 0)
      return Support::no(fmt::format("head_dim {}: this kernel takes multiples of 8", t->dim(-1)));
  for (const auto& [name, t] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}, {"out", &p.out}})
    if (const Support s = has_chunks(name, *t); !s) return s;
  for (const auto& [name, t] : {std::pair{"k", &p.k}, {"v", &p.v}})
    if (const Support s = within_reach(name, *t); !s) return s;
  return shared_fits(flash2_tiles(p, args_of(p)).shared_bytes, ctx.caps);
}

std::shared_ptr<State> flash2_prepare(const AttentionParams& p, const PlanContext& ctx,
                                      std::size_t* workspace_bytes) {
  const Args a = args_of(p);
  const Tiles t = flash2_tiles(p, a);
  const std::int64_t slots = std::int64_t{multiprocessors(p.q.device.index)} * t.blocks_per_sm;
  std::shared_ptr<State> s;
  if (const int blocks = t.few ? cluster_blocks_for(a, max_units(a, t.rows), slots, ctx.caps) : 0) {
    s = std::make_shared<State>();
    s->cluster_blocks = blocks;
    // Where a block has a multiprocessor for itself, and keys for more warps.
    s->wide_blocks = max_units(a, t.rows) * blocks <= multiprocessors(p.q.device.index) &&
                     most_keys(a) > std::int64_t{blocks} * DecodeShape<64>::kKeys &&
                     shared_fits(tiles_of<WideDecodeShape>(largest_dim(p), true).shared_bytes, ctx.caps);
  } else {
    s = plan(p, a, t, workspace_bytes);
  }
  s->few_rows = t.few;
  return s;
}

void flash2_run(const AttentionParams& p, const State& s, const RunContext& ctx) {
  // A plan serves other addresses than it was made with.
  for (const auto& [name, t] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}, {"out", &p.out}})
    if (!is_aligned(*t))
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("attention: {}: attention_flash2 expected an address that is a multiple of 16, got {}: "
                      "copy the tensor, or select the kernel cuda::attention_f32",
                      name, t->data));
  if (p.q.dtype == DType::f16) return launch_tiles<F16>(p, s, ctx);
  return launch_tiles<Bf16>(p, s, ctx);
}

}  // namespace kf::cuda
