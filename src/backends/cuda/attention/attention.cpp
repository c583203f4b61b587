#include "backends/cuda/attention/attention.h"

#include <fmt/format.h>

#include "backends/cuda/attention/launches.h"
#include "backends/cuda/attention/shapes.h"
#include "backends/cuda/supports.h"
#include "core/half.h"
#include "kf/error.h"

namespace kf::cuda {
namespace attention {
namespace {

// Rows a K/V head of a sequence has on average, up to which the decode kernel takes them.
constexpr std::int64_t kFewRows = 32;

// Of a launch's tiles.
struct Tiles {
  int rows, blocks_per_sm;
  bool few;  // keys are cut however many units there are: sequences may differ
  std::size_t shared_bytes;
};

template <class S>
Tiles tiles_of(bool few) {
  return {S::kRows, S::kBlocksPerSm, few, S::kSharedBytes};
}
template <template <int> class S>
Tiles tiles_of(std::int64_t dim, bool few) {
  return dim <= 64 ? tiles_of<S<64>>(few) : dim <= 128 ? tiles_of<S<128>>(few) : tiles_of<S<256>>(few);
}

std::int64_t largest_dim(const AttentionParams& p) { return std::max(p.q.dim(-1), p.v.dim(-1)); }

Tiles flash2_tiles(const AttentionParams& p, const Args& a) {
  const std::int64_t dim = largest_dim(p);
  if (std::int64_t{a.total_q} * a.group <= kFewRows * a.batch) return tiles_of<DecodeShape>(dim, true);
  return tiles_of<Flash2Shape>(dim, false);
}

// The most units that a batch has, whatever the lengths of its sequences.
std::int64_t max_units(const Args& a, int tile_rows) {
  const std::int64_t group = a.group;
  if (a.dense)
    return std::int64_t{a.batch} * a.num_kv_heads * ((a.seqlen_q * group + tile_rows - 1) / tile_rows);
  const std::int64_t of_token = (group + tile_rows - 1) / tile_rows;
  return a.num_kv_heads * std::min(a.total_q * group / tile_rows + a.batch, a.total_q * of_token);
}

std::shared_ptr<State> plan(const AttentionParams& p, const Args& a, const Tiles& t,
                            std::size_t* workspace_bytes) {
  const std::int64_t slots = std::int64_t{multiprocessors(p.q.device.index)} * t.blocks_per_sm;
  const std::int64_t units = max_units(a, t.rows);
  const bool cut = t.few || units < slots;
  auto s = std::make_shared<State>();
  s->target_blocks = cut ? static_cast<int>(slots) : 0;
  s->max_blocks = static_cast<std::size_t>(units + s->target_blocks);
  if (cut)
    *workspace_bytes = s->max_blocks * static_cast<std::size_t>(t.rows * (a.value_dim + 1)) * sizeof(float);
  return s;
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

Args args_for(const AttentionParams& p, const State& s, int tile_rows, const RunContext& ctx) {
  Args a = args_of(p);
  a.fault = table_fault(p.q.device.index);
  a.target_blocks = s.target_blocks;
  a.cluster_blocks = s.cluster_blocks;
  a.wide_blocks = s.wide_blocks;
  if (s.target_blocks > 0) {
    a.partial = static_cast<float*>(ctx.workspace);
    a.partial_lse = a.partial + s.max_blocks * static_cast<std::size_t>(tile_rows * a.value_dim);
  }
  return a;
}

Grid grid_of(const Args& a, const State& s, int tile_rows) {
  return {static_cast<unsigned>(s.max_blocks), static_cast<unsigned>(max_units(a, tile_rows))};
}

void run_f32(const AttentionParams& p, const State& s, const RunContext& ctx) {
  const Args a = args_for(p, s, F32Shape::kRows, ctx);
  const Grid grid = grid_of(a, s, F32Shape::kRows);
  if (grid.units == 0) return;
  if (p.q.dtype == DType::f32) return launch_f32<float>(a, grid, p.q, ctx);
  return p.q.dtype == DType::f16 ? launch_f32<F16>(a, grid, p.q, ctx) : launch_f32<Bf16>(a, grid, p.q, ctx);
}

Support fits(const AttentionParams& p) {
  constexpr std::int64_t kMax = 1 << 27;
  if (const std::int64_t dim = largest_dim(p); dim > F32Shape::kMaxDim)
    return Support::no(fmt::format("head_dim {}: this kernel takes up to {}", dim, F32Shape::kMaxDim));
  if (p.sparsity.block_layout.present()) return Support::no("block_layout: this kernel attends every block");
  if (p.sparsity.keep_m != 0)
    return Support::no(fmt::format("keep_m {}: this kernel keeps all scores", p.sparsity.keep_m));
  if (p.q.dim(-1) == 0 || p.v.dim(-1) == 0) return Support::no("head_dim 0: this kernel takes at least 1");
  const std::int64_t rows = p.q.numel() / p.q.dim(-1);
  if (rows > kMax || p.k.dim(0) > kMax || p.k.dim(1) > kMax || p.k.dim(2) > kMax)
    return Support::no(
        fmt::format("q {}, k {}: too many rows for one grid", shape_string(p.q), shape_string(p.k)));
  return Support::yes();
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

Support attention_f32_supports(const AttentionParams& p, const PlanContext&) { return fits(p); }

std::shared_ptr<State> attention_f32_prepare(const AttentionParams& p, const PlanContext&,
                                             std::size_t* workspace_bytes) {
  const Args a = args_of(p);
  return plan(p, a, tiles_of<F32Shape>(std::int64_t{a.total_q} * a.group <= kFewRows * a.batch),
              workspace_bytes);
}

void attention_f32_run(const AttentionParams& p, const State& s, const RunContext& ctx) {
  run_f32(p, s, ctx);
}

}  // namespace kf::cuda
