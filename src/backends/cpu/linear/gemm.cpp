// The linear family on our own GEMM: how it is cut, and who does what. The arithmetic is in gemm_simd.cpp.
#include "backends/cpu/linear/gemm.h"

#include <initializer_list>
#include <memory>
#include <string>

#include <fmt/format.h>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/linear/kernels.h"
#include "backends/cpu/linear/weights.h"
#include "backends/cpu/team.h"
#include "backends/cpu/workspace.h"
#include "kf/ops/linear.h"

namespace kf::cpu {


struct GemmState {
  std::shared_ptr<void> packs[3];  // of the op's weights in their order; null where a weight is not packed
  std::int64_t rows_per_pass = 0;
  PanelLayout layout;  // wide where all weights are sparse
  int weight_pieces = 0;
  int num_threads = 1;
};

namespace {

// ---------------------------------------------------------------------------------------------------------------
// Plan

// A plain weight as strips, made once where weights are constant. Low-bit and sparse weights stay as they lie.
std::shared_ptr<void> pack_weight(const Weight& w, const PlanContext& ctx, Units units) {
  const TensorView& weight = w.layout;
  if (ctx.packs == nullptr || w.sparsity.present() || !is_activation_dtype(weight.dtype) ||
      weight.numel() == 0)
    return nullptr;
  const bool tiles = units == Units::matrix && weight.dtype == DType::bf16;
  const std::int64_t lanes = strip_lanes();
  const std::string format = tiles ? "tiles" : "strips" + std::to_string(lanes);
  return ctx.packs->get<void>({&weight}, format, [&](std::size_t* bytes) {
    const std::int64_t strips = ceil_div(weight.dim(0), lanes);
    const std::size_t strip_bytes = static_cast<std::size_t>(
        tiles ? ceil_div(weight.dim(1), kTileDepth) * kTileBytes
              : weight.dim(1) * lanes * static_cast<std::int64_t>(dtype_info(weight.dtype).block_bytes));
    *bytes = static_cast<std::size_t>(strips) * strip_bytes;
    std::shared_ptr<void> packed = allocate_host(*bytes);
#pragma omp parallel for num_threads(ctx.num_threads)
    for (std::int64_t s = 0; s < strips; ++s) {
      char* const to = static_cast<char*>(packed.get()) + static_cast<std::size_t>(s) * strip_bytes;
      tiles ? pack_tiles(weight, s, to) : pack_strip(weight, s, to);
    }
    return packed;
  });
}

// Equal passes, few enough rows that what is packed of them takes at most half of the last cache.
std::int64_t rows_per_pass(std::int64_t rows, std::size_t packed_bytes_per_row, std::int64_t unit,
                           const DeviceCaps& caps) {
  const auto fit = static_cast<std::int64_t>(caps.l3_bytes / 2 / packed_bytes_per_row);
  const std::int64_t most = std::clamp(fit / kChunkRows * kChunkRows, kChunkRows, kMaxRowsPerPass);
  if (rows == 0) return 0;
  return std::min(rows, ceil_div(ceil_div(rows, ceil_div(rows, most)), unit) * unit);
}

// Bytes that a row takes for a reduction of this length.
std::size_t packed_row_bytes(const Blocks& blocks, const PanelLayout& layout) {
  return layout.bytes(layout.item_unit(), blocks) / static_cast<std::size_t>(layout.item_unit());
}
std::size_t packed_row_bytes(std::int64_t in, const PanelLayout& layout) {
  return packed_row_bytes(cut_blocks(in), layout);
}

PanelLayout layout_of(DType x, Units units) {
  PanelLayout layout;
  if (units == Units::matrix) layout.pieces = pieces_of(x);
  return layout;
}

std::shared_ptr<GemmState> make_state(std::initializer_list<const Weight*> weights, const TensorView& x,
                                      Units units, std::size_t packed_bytes_per_row, const PlanContext& ctx,
                                      const Lora& lora = {}) {
  auto s = std::make_shared<GemmState>();
  std::size_t i = 0;
  for (const Weight* w : weights) s->packs[i++] = pack_weight(*w, ctx, units);
  s->layout = layout_of(x.dtype, units);
  // Two pieces of a weight are more than a result in bf16 shows.
  s->weight_pieces = x.dtype == DType::bf16 ? 2 : kMaxPieces;
  const std::int64_t unit = units == Units::matrix ? s->layout.item_unit() : kPanelUnit;
  s->rows_per_pass = rows_per_pass(x.dim(0), packed_bytes_per_row, unit, ctx.caps);
  // An adapter's matrices are dense, and read the same x.
  if (units == Units::vector && !lora.present() &&
      std::all_of(weights.begin(), weights.end(), [](const Weight* w) { return w->sparsity.present(); }))
    s->layout.wide = wide_rows(s->rows_per_pass);
  s->num_threads = ctx.num_threads;
  return s;
}

// ---------------------------------------------------------------------------------------------------------------
// Workspace: the rows of a pass, then what each thread has for itself.

PackedRows take_rows(Workspace& parts, std::int64_t rows, const Blocks& blocks, const PanelLayout& layout) {
  PackedRows packed;
  packed.rows = rows;
  packed.capacity = layout.capacity_for(rows);
  packed.layout = layout;
  packed.blocks = blocks;
  packed.data = parts.take<char>(layout.bytes(rows, blocks));
  return packed;
}

// What a thread has for itself.
struct ThreadPart {
  GemmItem item;
  float* max;
  std::int32_t* index;

  ThreadPart(Workspace& parts, std::int64_t rows, const GemmState& s) {
    const auto lanes = static_cast<std::size_t>(strip_lanes());
    const auto n = static_cast<std::size_t>(rows);
    const auto pairs = static_cast<std::size_t>(s.layout.pairs_per_item());
    const bool has_tiles = s.layout.pieces != 0;
    item.strips = parts.take<float>((has_tiles ? 1 : 2 * pairs) * kMaxDepth * lanes);
    if (has_tiles) item.tiles = parts.take<std::uint16_t>(2 * pairs * kMaxPieces * kMaxDepth * lanes);
    item.weight_pieces = s.weight_pieces;
    item.sums = parts.take<float>(pairs * n * 2 * lanes);
    max = parts.take<float>(n);
    index = parts.take<std::int32_t>(n);
  }
};

// A block of every adapter's rank.
Blocks blocks_of(const Lora& lora) {
  Blocks b;
  b.depth = ceil_div(lora.a.dim(-2), 32) * 32;
  b.count = lora.a.rank == 3 ? lora.a.dim(0) : 1;
  b.in = b.depth * b.count;
  return b;
}

class GemmSpace {
 public:
  PackedRows a, hidden, low;  // hidden: gated_ffn only; low: of adapters only
  std::size_t bytes;          // of the workspace

  GemmSpace(void* workspace, const GemmState& s, std::int64_t in, std::int64_t intermediate = -1,
            const Lora& lora = {})
      : state_(s), rows_(s.rows_per_pass), capacity_(s.layout.capacity_for(rows_)) {
    Workspace parts(workspace);
    a = take_rows(parts, rows_, cut_blocks(in), s.layout);
    if (intermediate >= 0) hidden = take_rows(parts, rows_, cut_blocks(intermediate), s.layout);
    if (lora.present()) low = take_rows(parts, rows_, blocks_of(lora), {});
    threads_ = parts.take<char>(0);
    Workspace own(nullptr);
    [[maybe_unused]] const ThreadPart counted(own, capacity_, s);
    bytes_per_thread_ = own.bytes();
    bytes = parts.bytes() + bytes_per_thread_ * static_cast<std::size_t>(s.num_threads);
  }
  ThreadPart of_thread(int thread) const {
    Workspace own(threads_ + static_cast<std::size_t>(thread) * bytes_per_thread_);
    return ThreadPart(own, capacity_, state_);
  }

 private:
  const GemmState& state_;
  std::int64_t rows_, capacity_;
  char* threads_;
  std::size_t bytes_per_thread_;
};

// ---------------------------------------------------------------------------------------------------------------
// Run. The functions on passes are called by every thread of a team, share their work among it, and end with
// a barrier.

void pack_pass(const TensorView& x, const Prologue& prologue, std::int64_t row_offset, const PackedRows& a,
               const Member& member) {
  const std::int64_t unit = a.layout.pack_unit();
  member.deal(ceil_div(a.rows, unit), [&](std::int64_t i) {
    pack_rows(x, prologue, row_offset, i * unit, std::min(a.rows, (i + 1) * unit), a);
  });
}

LowRank low_rank_of(const Lora& lora, PackedRows low, std::int64_t rows, std::int64_t first_row) {
  LowRank l;
  if (!lora.present()) return l;
  low.rows = rows;
  l.low = low;
  l.a = lora.a;
  l.b = lora.b;
  l.scale = lora.scale;
  if (!lora.index.present()) return l;
  l.index_stride = lora.index.stride(0);
  l.index = lora.index.as<const std::int32_t>() + first_row * l.index_stride;
  return l;
}

std::int64_t pairs_of(const LowRankEpilogue& e) {
  return ceil_div(e.weight.layout.dim(0), 2 * strip_lanes());
}
std::int64_t pairs_of(const StoreEpilogue& e) { return ceil_div(e.weight.layout.dim(0), 2 * strip_lanes()); }
std::int64_t pairs_of(const ArgmaxEpilogue& e) { return ceil_div(e.weight.layout.dim(0), 2 * strip_lanes()); }
std::int64_t pairs_of(const GateEpilogue& e) { return ceil_div(e.gate.layout.dim(0), strip_lanes()); }

// How rows and pairs are cut into items: as large as may be while every thread gets several, so that none
// waits long for another at the end.
struct Items {
  std::int64_t rows = 0, pairs = 0;  // in all
  std::int64_t rows_per_item = 1, pairs_per_item = 1;

  Items() = default;
  Items(std::int64_t rows, const PanelLayout& layout, std::int64_t pairs, int threads)
      : rows(rows),
        pairs(pairs),
        rows_per_item(std::max<std::int64_t>(1, rows)),
        pairs_per_item(layout.pairs_per_item()) {
    const std::int64_t unit = layout.item_unit(),
                       wanted = threads == 1 ? 1 : (layout.pieces != 0 ? 4 : 8) * threads;
    while (count() < wanted && pairs_per_item > 1) pairs_per_item /= 2;
    while (count() < wanted && rows_per_item >= kChunkRows)
      rows_per_item = ceil_div(rows_per_item, 2 * unit) * unit;
  }
  std::int64_t row_blocks() const { return ceil_div(rows, rows_per_item); }
  std::int64_t count() const { return ceil_div(pairs, pairs_per_item) * row_blocks(); }
  void set(GemmItem& item, std::int64_t i) const {
    item.pair_begin = i / row_blocks() * pairs_per_item;
    item.pair_end = std::min(pairs, item.pair_begin + pairs_per_item);
    item.row_begin = i % row_blocks() * rows_per_item;
    item.row_end = std::min(rows, item.row_begin + rows_per_item);
  }
};

// Products over the same rows; their items are dealt out together.
template <class Epilogue, std::size_t kProducts>
void multiply_pass(GemmItem item, const Epilogue (&products)[kProducts], const Member& member) {
  Items items[kProducts];
  std::int64_t count = 0;
  for (std::size_t p = 0; p < kProducts; ++p) {
    items[p] = Items(item.a.rows, item.a.layout, pairs_of(products[p]), member.threads);
    count += items[p].count();
  }
  member.deal(count, [&](std::int64_t index) {
    std::size_t p = 0;
    while (index >= items[p].count()) index -= items[p++].count();
    items[p].set(item, index);
    multiply(item, products[p]);
  });
}

// Calls pass(first row of x, packed rows of A, the thread's part) for one pass after the other, in every
// thread.
template <class Pass>
void for_each_pass(const TensorView& x, const Prologue& prologue, const GemmState& s, const GemmSpace& space,
                   const RunContext& ctx, const Pass& pass) {
  const std::int64_t num_tokens = x.dim(0);
  if (num_tokens == 0) return;
  run_team(std::min(ctx.num_threads, s.num_threads), [&](const Member& member) {
    ThreadPart own = space.of_thread(member.thread);
    own.item.a = space.a;
    for (std::int64_t row = 0; row < num_tokens; row += s.rows_per_pass) {
      own.item.a.rows = std::min(s.rows_per_pass, num_tokens - row);
      pack_pass(x, prologue, row, own.item.a, member);
      pass(row, own, member);
    }
  });
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------
// linear

// The primitive form, as an eager framework calls it for weights that its library does not take.
Support gemm::supports_primitive(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  if (!p.prologue.empty()) return Support::no("a prologue: this row is the unfused linear layer");
  if (p.activation != Activation::none)
    return Support::no("an activation: this row is the unfused linear layer");
  if (p.residual.present()) return Support::no("a residual: this row is the unfused linear layer");
  if (p.lora.present()) return Support::no("an adapter: this row is the unfused linear layer");
  if (p.weight.dtype == DType::f32 && p.x.dtype == DType::f32 && !p.weight_sparsity.present())
    return Support::no("f32 throughout: this row takes 16-bit, low-bit and sparse operands");
  return Support::yes();
}

namespace {

// Tokens from which tiles are faster than vectors, by what the weights are.
constexpr std::int64_t kFewestOfFloats = 8, kFewestOfLowBit = 16, kFewestOfF32 = 64;

Support on_matrix_units(const TensorView& x, std::initializer_list<const Weight*> weights,
                        const PlanContext& ctx) {
  if (ctx.caps.isa != kMatrixIsa)
    return Support::no(
        fmt::format("instruction set {}: this kernel takes {} (AMX with bf16)", ctx.caps.isa, kMatrixIsa));
  for (const Weight* w : weights)
    if (w->sparsity.present()) return Support::no("a sparse weight: this kernel multiplies whole tiles");
  // Fewer do not pay for cutting the weights: 16-bit floats are hardly cut.
  const bool floats = std::all_of(weights.begin(), weights.end(), [](const Weight* w) {
    return w->layout.dtype == DType::bf16 || w->layout.dtype == DType::f16;
  });
  const std::int64_t least = floats                  ? kFewestOfFloats
                             : x.dtype == DType::f32 ? kFewestOfF32
                                                     : kFewestOfLowBit;
  if (x.dim(0) < least)
    return Support::no(
        fmt::format("{} tokens: for these dtypes this kernel takes at least {}", x.dim(0), least));
  return Support::yes();
}

}  // namespace

Support gemm::supports_matrix(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  if (p.lora.present()) return Support::no("an adapter: this kernel multiplies one weight");
  const Weight weight = weight_of(p);
  return on_matrix_units(p.x, {&weight}, ctx);
}
Support gemm::supports_matrix_primitive(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = supports_primitive(p, ctx); !s) return s;
  return supports_matrix(p, ctx);
}

std::shared_ptr<GemmState> gemm::prepare(const LinearParams& p, const PlanContext& ctx, std::size_t* bytes,
                                         Units units) {
  const Weight weight = weight_of(p);
  const std::size_t low_bytes = p.lora.present() ? packed_row_bytes(blocks_of(p.lora), {}) : 0;
  auto s = make_state({&weight}, p.x, units,
                      packed_row_bytes(p.x.dim(1), layout_of(p.x.dtype, units)) + low_bytes, ctx, p.lora);
  *bytes = GemmSpace(nullptr, *s, p.x.dim(1), -1, p.lora).bytes;
  return s;
}

void gemm::run(const LinearParams& p, const GemmState& s, const RunContext& ctx) {
  const GemmSpace space(ctx.workspace, s, p.x.dim(1), -1, p.lora);
  for_each_pass(p.x, p.prologue, s, space, ctx, [&](std::int64_t row, ThreadPart& own, const Member& member) {
    const LowRank low_rank = low_rank_of(p.lora, space.low, own.item.a.rows, row);
    for (std::int64_t adapter = 0; low_rank.present() && adapter < low_rank.adapters(); ++adapter) {
      const LowRankEpilogue products[] = {{{adapter_weight(p.lora.a, adapter), nullptr}, low_rank, adapter}};
      multiply_pass(own.item, products, member);
    }
    own.item.low_rank = low_rank.present() ? &low_rank : nullptr;
    const StoreEpilogue products[] = {
        {{weight_of(p), s.packs[0].get()}, p.bias, p.residual, p.out, p.activation, row}};
    multiply_pass(own.item, products, member);
    own.item.low_rank = nullptr;
  });
}

// ---------------------------------------------------------------------------------------------------------------
// qkv_linear

Support gemm::supports_matrix(const QkvLinearParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  const QkvWeights w(p);
  return on_matrix_units(p.x, {&w.q, &w.k, &w.v}, ctx);
}

std::shared_ptr<GemmState> gemm::prepare(const QkvLinearParams& p, const PlanContext& ctx, std::size_t* bytes,
                                         Units units) {
  const QkvWeights w(p);
  auto s = make_state({&w.q, &w.k, &w.v}, p.x, units,
                      packed_row_bytes(p.x.dim(1), layout_of(p.x.dtype, units)), ctx);
  *bytes = GemmSpace(nullptr, *s, p.x.dim(1)).bytes;
  return s;
}

void gemm::run(const QkvLinearParams& p, const GemmState& s, const RunContext& ctx) {
  const QkvWeights w(p);
  const GemmSpace space(ctx.workspace, s, p.x.dim(1));
  for_each_pass(p.x, p.prologue, s, space, ctx,
                [&](std::int64_t row, const ThreadPart& own, const Member& member) {
                  const StoreEpilogue products[] = {
                      {{w.q, s.packs[0].get()}, p.q_bias, {}, p.q, Activation::none, row},
                      {{w.k, s.packs[1].get()}, p.k_bias, {}, p.k, Activation::none, row},
                      {{w.v, s.packs[2].get()}, p.v_bias, {}, p.v, Activation::none, row}};
                  multiply_pass(own.item, products, member);
                });
}

// ---------------------------------------------------------------------------------------------------------------
// gated_ffn: the hidden rows of a pass are written packed, as the A of the down product.

Support gemm::supports_matrix(const GatedFfnParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  const FfnWeights w(p);
  return on_matrix_units(p.x, {&w.gate, &w.up, &w.down}, ctx);
}

std::shared_ptr<GemmState> gemm::prepare(const GatedFfnParams& p, const PlanContext& ctx, std::size_t* bytes,
                                         Units units) {
  const FfnWeights w(p);
  const std::int64_t in = p.x.dim(1), intermediate = w.gate.layout.dim(0);
  const PanelLayout layout = layout_of(p.x.dtype, units);
  auto s = make_state({&w.gate, &w.up, &w.down}, p.x, units,
                      packed_row_bytes(in, layout) + packed_row_bytes(intermediate, layout), ctx);
  *bytes = GemmSpace(nullptr, *s, in, intermediate).bytes;
  return s;
}

void gemm::run(const GatedFfnParams& p, const GemmState& s, const RunContext& ctx) {
  const FfnWeights w(p);
  const GemmSpace space(ctx.workspace, s, p.x.dim(1), w.gate.layout.dim(0));
  for_each_pass(p.x, p.prologue, s, space, ctx,
                [&](std::int64_t row, const ThreadPart& own, const Member& member) {
                  PackedRows hidden = space.hidden;
                  hidden.rows = own.item.a.rows;
                  const GateEpilogue gate[] = {
                      {{w.gate, s.packs[0].get()}, {w.up, s.packs[1].get()}, p.activation, hidden}};
                  multiply_pass(own.item, gate, member);
                  GemmItem item = own.item;
                  item.a = hidden;
                  const StoreEpilogue down[] = {
                      {{w.down, s.packs[2].get()}, {}, p.residual, p.out, Activation::none, row}};
                  multiply_pass(item, down, member);
                });
}

// ---------------------------------------------------------------------------------------------------------------
// lm_head_argmax: each thread keeps the maximum of what it has seen of every row; then the threads' are
// compared.

Support gemm::supports_matrix(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  const Weight weight = weight_of(p);
  return on_matrix_units(p.x, {&weight}, ctx);
}

std::shared_ptr<GemmState> gemm::prepare(const LmHeadArgmaxParams& p, const PlanContext& ctx,
                                         std::size_t* bytes, Units units) {
  const Weight weight = weight_of(p);
  auto s = make_state({&weight}, p.x, units, packed_row_bytes(p.x.dim(1), layout_of(p.x.dtype, units)), ctx);
  *bytes = GemmSpace(nullptr, *s, p.x.dim(1)).bytes;
  return s;
}

void gemm::run(const LmHeadArgmaxParams& p, const GemmState& s, const RunContext& ctx) {
  const GemmSpace space(ctx.workspace, s, p.x.dim(1));
  for_each_pass(p.x, p.prologue, s, space, ctx,
                [&](std::int64_t row, const ThreadPart& own, const Member& member) {
                  const std::int64_t rows = own.item.a.rows;
                  std::fill(own.index, own.index + rows, -1);
                  const ArgmaxEpilogue products[] = {{{weight_of(p), s.packs[0].get()}, own.max, own.index}};
                  multiply_pass(own.item, products, member);
                  member.part(rows, [&](std::int64_t r) {
                    float max = 0;
                    std::int32_t index = -1;
                    for (int t = 0; t < member.threads; ++t) {
                      const ThreadPart other = space.of_thread(t);
                      if (other.index[r] < 0 || !argmax_before(other.max[r], other.index[r], max, index))
                        continue;
                      max = other.max[r];
                      index = other.index[r];
                    }
                    p.ids.as<std::int32_t>()[(row + r) * p.ids.stride(0)] = index;
                    if (p.max.present()) p.max.as<float>()[(row + r) * p.max.stride(0)] = max;
                  });
                  member.meet();  // the next pass writes what is compared
                });
}

}  // namespace kf::cpu
