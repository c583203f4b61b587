// The linear family for few tokens, as products of a matrix with a few vectors, and for any number of them in 8 bits
// (InputQuantization): the threads share the rows of the weights, and every pass over these is one call of a team.
#include <algorithm>
#include <atomic>
#include <new>
#include <span>

#include <fmt/format.h>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/gemv/dot.h"
#include "backends/cpu/linear/gemv/int8.h"
#include "backends/cpu/linear/gemv/kernels.h"
#include "backends/cpu/linear/gemv/lora.h"
#include "backends/cpu/linear/gemv/matrix.h"
#include "backends/cpu/linear/gemv/token.h"
#include "backends/cpu/linear/weights.h"
#include "backends/cpu/shares.h"
#include "backends/cpu/simd/matrix_units.h"
#include "backends/cpu/workspace.h"
#include "kf/ops/linear.h"

namespace kf::cpu::gemv {
namespace {

// Tokens whose sums a thread holds.
constexpr std::int64_t kMaxTokens = 16;
// Beyond these, the GEMM is faster, which reads or decodes a weight once for all tokens instead of once for four (measured on Zen 4,
// 2048 x 2048 and 4096 x 4096): of floats that may be packed, of codes of 4 bits, of other codes, of sparse weights.
constexpr std::int64_t kMaxTokensPacked = 4, kMaxTokensOf4Bits = 6, kMaxTokensOfCodes = 12,
                       kMaxTokensSparse = kMaxTokens;
// Of f32 that may be packed where the weight is so large that it comes from memory: 3 tokens of 4096 x 4096 take 2.3 ms by the
// GEMM for 3.0. Smaller ones are worth neither its packing of x nor its items.
constexpr std::int64_t kMaxTokensPackedLarge = 2;
constexpr std::size_t kLargeBytes = 8 << 20;
// Tokens in 8 bits, whose products cost less than reading a weight again.
constexpr std::int64_t kMaxQuantizedTokens = 256;
// What a thread reads of a weight for all tokens before it goes on stays in L2.
constexpr std::int64_t kChunkBytes = 256 << 10;
// Output rows whose sums a thread holds before it finishes them: enough that the streams that a tile reads (tiles-inl.h) are
// long even where rows are short.
constexpr std::int64_t kChunk = 384;
// Tokens from which a tile of matrix units is faster than vectors.
constexpr std::int64_t kFewestOfTiles = 3;
// Threads take rows in multiples of this: a cache line of f32 results, and the rows of a tile of matrix units.
constexpr std::int64_t kRowUnit = 16;
// Weights below this are read faster by one thread than a team is called together.
constexpr std::size_t kMinTeamBytes = 32 << 10;

// Pieces of a weight that threads take from each other are not smaller: a stream costs something to begin.
constexpr std::int64_t kLeastPieceBytes = 4 << 10;

// What a thread of a team takes of the rows of weights.
struct Worker {
  const Shares& shares;
  const Member& member;

  // Calls body(begin, end) for this thread's pieces of `count` rows, of `row_bytes` each, in whole units.
  template <class Body>
  void take(std::int64_t count, std::int64_t unit, std::int64_t row_bytes, const Body& body) const {
    const std::int64_t least =
        std::max<std::int64_t>(kLeastPieceBytes / std::max<std::int64_t>(row_bytes * unit, 1), 1);
    shares.take((count + unit - 1) / unit, least, member, [&](std::int64_t begin, std::int64_t end) {
      body(std::min(count, begin * unit), std::min(count, end * unit));
    });
  }
};

std::int64_t row_bytes(const Weight& w) {
  return static_cast<std::int64_t>(w.layout.nbytes()) / std::max<std::int64_t>(w.layout.dim(0), 1);
}

// x in 8 bits, in the orders of these weights.
GemvCodes take_codes(Workspace& space, std::int64_t num_tokens, std::int64_t in,
                     std::initializer_list<const Weight*> weights) {
  const auto tokens = static_cast<std::size_t>(num_tokens);
  GemvCodes codes;
  codes.row_stride = code_stride(in);
  codes.rows = space.take<std::int8_t>(tokens * codes.row_stride);
  codes.scales = space.take<float>(tokens);
  for (const Weight* w : weights) {
    const CodeOrder order = code_order(*w);
    const auto i = static_cast<std::size_t>(order);
    if (codes.strides[i] != 0) continue;
    codes.strides[i] = code_form_stride(order, in);
    codes.forms[i] = space.take<float>(tokens * codes.strides[i]);
  }
  return codes;
}

// The forms of x that these weights are multiplied with.
template <class P>
GemvInput take_input(Workspace& space, const P& p, std::int64_t num_tokens, std::int64_t in, Units units,
                     std::initializer_list<const Weight*> weights) {
  GemvInput input;
  input.in = in;
  input.num_tokens = static_cast<int>(num_tokens);
  input.value_stride = value_stride(in);
  input.values = space.take<float>(static_cast<std::size_t>(num_tokens) * input.value_stride);
  if (p.input_quantization != InputQuantization::none) {
    input.codes = take_codes(space, num_tokens, in, weights);
    return input;
  }
  if (units == Units::matrix) {
    input.pieces = pieces_of(p.x.dtype);
    input.tiles = space.take<char>(token_tile_bytes(in, input.pieces));
    return input;
  }
  input.nibble_stride = nibble_stride(in);
  for (const NibbleOrder order : {NibbleOrder::halves, NibbleOrder::neighbours})
    if (std::any_of(weights.begin(), weights.end(), [&](const Weight* w) {
          return !w->sparsity.present() && has_nibbles(w->layout.dtype, order);
        }))
      input.nibbles[static_cast<int>(order)] =
          space.take<float>(static_cast<std::size_t>(num_tokens) * input.nibble_stride);
  input.outsized = space.take<std::uint32_t>(1);
  if (!space.counting()) *input.outsized = 0;
  return input;
}

std::int64_t max_tokens(const Weight& w, const PlanContext& ctx) {
  if (w.sparsity.present()) return kMaxTokensSparse;
  switch (w.layout.dtype) {
    case DType::f32:
      if (ctx.packs && w.layout.nbytes() >= kLargeBytes) return kMaxTokensPackedLarge;
      [[fallthrough]];
    case DType::f16:
    case DType::bf16:
      return ctx.packs ? kMaxTokensPacked : kMaxTokens;
    case DType::q4_0:
    case DType::q4_1:
    case DType::int4:
      return kMaxTokensOf4Bits;
    default:
      return kMaxTokensOfCodes;
  }
}

// `w`: the weight, or the first of several, which are alike.
Support few_tokens(const TensorView& x, const Weight& w, const PlanContext& ctx) {
  const std::int64_t most = max_tokens(w, ctx);
  if (x.dim(0) <= most) return Support::yes();
  const bool sparse = w.sparsity.present();
  return Support::no(
      fmt::format("{} tokens: this kernel takes at most {} with a {}weight of {}{}", x.dim(0), most,
                  sparse ? "sparse " : "", dtype_name(w.layout.dtype),
                  !sparse && ctx.packs != nullptr && most <= kMaxTokensPacked ? " that may be packed" : ""));
}

Support rows_contiguous(const char* name, const Weight& w) {
  const TensorView& weight = w.layout;
  if (weight.dim(1) <= 1 || weight.stride(1) == 1) return Support::yes();
  return Support::no(
      fmt::format("{}: its rows have stride {}: this kernel takes contiguous rows", name, weight.stride(1)));
}

// What the rows of tokens in 8 bits ask of a weight.
Support multiplies_codes(const char* name, const Weight& w) {
  if (w.sparsity.present())
    return Support::no(fmt::format("{}: sparse: this kernel takes dense weights", name));
  if (code_order(w) == CodeOrder::none)
    return Support::no(fmt::format("{} {}: this kernel takes i8, int4, q8_0, q4_0 and q4_1", name,
                                   dtype_name(w.layout.dtype)));
  return rows_contiguous(name, w);
}

Support in_8_bits(InputQuantization quantization) {
  if (quantization == InputQuantization::int8) return Support::yes();
  return Support::no("input_quantization none: this kernel takes x in 8 bits, where that is asked for");
}

template <class P>
Support on_tiles(const P& p, std::initializer_list<const Weight*> weights, const PlanContext& ctx) {
  if (ctx.caps.isa != kMatrixIsa)
    return Support::no(
        fmt::format("instruction set {}: this kernel takes {} (AMX with bf16)", ctx.caps.isa, kMatrixIsa));
  for (const Weight* w : weights)
    if (w->sparsity.present() || w->layout.dtype != DType::bf16)
      return Support::no(fmt::format("a {}weight of {}: this kernel takes dense ones of bf16",
                                     w->sparsity.present() ? "sparse " : "", dtype_name(w->layout.dtype)));
  if (p.x.dim(0) < kFewestOfTiles || p.x.dim(0) > kTokensOfTile)
    return Support::no(
        fmt::format("{} tokens: this kernel takes {} to {}", p.x.dim(0), kFewestOfTiles, kTokensOfTile));
  return full_precision(p, ctx);
}

// Tokens of one pass.
template <class P>
std::int64_t pass_tokens(const P& p) {
  const bool codes = p.input_quantization != InputQuantization::none && P::kOp != Op::lm_head_argmax;
  return std::min(p.x.dim(0), codes ? kMaxQuantizedTokens : kMaxTokens);
}

// A call's tokens [begin, end): x, and what has a row for each of them.
template <class P>
P some_tokens(P p, std::int64_t begin, std::int64_t end) {
  const auto slice = [&](TensorView& t) {
    if (t.present()) t = t.slice(0, begin, end);
  };
  slice(p.x);
  if constexpr (requires { p.out; }) {
    slice(p.out);
    slice(p.residual);
  } else if constexpr (requires { p.ids; }) {
    slice(p.ids);
    slice(p.max);
  } else {
    slice(p.q);
    slice(p.k);
    slice(p.v);
  }
  return p;
}

template <class P>
void run_passes(const P& p, const RunContext& ctx, void (*run)(const P&, const RunContext&)) {
  const std::int64_t tokens = p.x.dim(0), step = pass_tokens(p);
  // Without tokens nothing of x lies in the workspace, by which the passes tell its forms.
  if (tokens == 0) return;
  if (step == tokens) return run(p, ctx);
  for (std::int64_t begin = 0; begin < tokens; begin += step)
    run(some_tokens(p, begin, std::min(tokens, begin + step)), ctx);
}

// Every condition must hold; the first that does not is the reason.
Support all_of(std::initializer_list<Support> conditions) {
  for (const Support& s : conditions)
    if (!s) return s;
  return Support::yes();
}

int team_of(const RunContext& ctx, std::initializer_list<const Weight*> weights) {
  std::size_t bytes = 0;
  for (const Weight* w : weights) bytes += w->layout.nbytes();
  return bytes < kMinTeamBytes ? 1 : ctx.num_threads;
}

// A lone token is prepared before the team is called, which costs less than a barrier; several are shared
// out.
void prepare_alone(const TensorView& x, const Prologue& prologue, const GemvInput& input) {
  if (input.num_tokens == 1) prepare_token(x, prologue, input, 0);
}
void prepare_together(const TensorView& x, const Prologue& prologue, const GemvInput& input,
                      const Member& member) {
  if (input.num_tokens == 1) return;
  for (int t = member.thread; t < input.num_tokens; t += member.threads) prepare_token(x, prologue, input, t);
  member.meet();
  if (input.tiles == nullptr) return;
  const std::int64_t parts = (input.in + kRowUnit - 1) / kRowUnit;
  fill_token_tiles(input, parts * member.thread / member.threads * kRowUnit,
                   std::min(input.in, parts * (member.thread + 1) / member.threads * kRowUnit));
  member.meet();
}

// A weight and what becomes of its sums.
struct Layer {
  const Weight& weight;
  GemvEpilogue epilogue;
  const GemvLora* lora = nullptr;
};

// Rows of a weight that are read for all tokens at a time.
std::int64_t chunk_of(const Weight& weight, const GemvInput& input) {
  if (input.num_tokens <= kMaxTokens) return kChunk;
  return std::clamp(kChunkBytes / std::max<std::int64_t>(row_bytes(weight), 1) / kRowUnit * kRowUnit,
                    kRowUnit, kChunk);
}

// Calls body(first, some) for groups of tokens whose sums a thread holds, `some` the input of those from token `first` on.
template <class Body>
void for_each_group(const GemvInput& input, const Body& body) {
  if (input.num_tokens <= kMaxTokens) return body(0, input);
  for (int first = 0; first < input.num_tokens; first += kMaxTokens)
    body(first, input.tokens(first, std::min(static_cast<int>(kMaxTokens), input.num_tokens - first)));
}

void run_rows(const Layer& layer, const GemvInput& input, std::int64_t first_row, std::int64_t end_row) {
  float sums[kMaxTokens * kChunk];
  if (first_row == end_row) return;
  const std::int64_t chunk = chunk_of(layer.weight, input);
  for (std::int64_t begin = first_row; begin < end_row; begin += chunk) {
    const std::int64_t end = std::min(end_row, begin + chunk);
    for_each_group(input, [&](int first, const GemvInput& some) {
      dot_rows(layer.weight, some, begin, end, sums, kChunk);
      if (layer.lora != nullptr) layer.lora->add(begin, end, sums, kChunk);
      store_sums(layer.epilogue, sums, kChunk, first, some.num_tokens, begin, end - begin);
    });
  }
}

// linear and qkv_linear: layers over one input.

std::int64_t units_of(const Weight& w) { return (w.layout.dim(0) + kRowUnit - 1) / kRowUnit; }

// The row of `w` at which a unit begins, where the units of several weights are numbered through and those of `w` from `first` on.
std::int64_t row_of(const Weight& w, std::int64_t unit, std::int64_t first) {
  return std::clamp((unit - first) * kRowUnit, std::int64_t{0}, w.layout.dim(0));
}

// The threads share the rows of all layers as if they were one layer's.
void run_layers(std::span<const Layer> layers, const GemvInput& input, const Worker& worker) {
  std::int64_t total = 0;
  for (const Layer& layer : layers) total += units_of(layer.weight);
  worker.take(total, 1, kRowUnit * row_bytes(layers[0].weight), [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (const Layer& layer : layers) {
      run_rows(layer, input, row_of(layer.weight, begin, first), row_of(layer.weight, end, first));
      first += units_of(layer.weight);
    }
  });
}

// Rows [begin, end) where they lie one after the other, and all of them are read; nothing of a weight that is not bound yet.
MemoryRange range_of(const Weight& w, std::int64_t begin, std::int64_t end) {
  if (w.layout.data == nullptr || w.sparsity.present() || begin >= end || !w.layout.is_contiguous())
    return {};
  return {w.layout.as<char>() + begin * row_bytes(w), static_cast<std::size_t>((end - begin) * row_bytes(w))};
}

// A thread's own share of a weight's rows.
MemoryRange share_of(const Weight& w, std::int64_t thread, std::int64_t threads) {
  const std::int64_t units = units_of(w);
  return range_of(w, row_of(w, units * thread / threads, 0), row_of(w, units * (thread + 1) / threads, 0));
}

GemvInput input_of(const LinearParams& p, Units units, Workspace& space) {
  const Weight weight = weight_of(p);
  return take_input(space, p, pass_tokens(p), p.x.dim(1), units, {&weight});
}

GemvInput input_of(const QkvLinearParams& p, Units units, Workspace& space) {
  const QkvWeights w(p);
  return take_input(space, p, pass_tokens(p), p.x.dim(1), units, {&w.q, &w.k, &w.v});
}

}  // namespace

std::string condition() {
  return fmt::format(
      "at most {} tokens ({} of floats that may be packed, {} of f32 from 8 MB on; {} of 4-bit codes, {} of "
      "other codes, {} of sparse weights), contiguous weight rows",
      kMaxTokens, kMaxTokensPacked, kMaxTokensPackedLarge, kMaxTokensOf4Bits, kMaxTokensOfCodes,
      kMaxTokensSparse);
}

std::string matrix_condition() {
  return fmt::format(
      "AMX with bf16; {} to {} tokens; dense bf16 weights of contiguous rows; no adapter, no "
      "input_quantization",
      kFewestOfTiles, kTokensOfTile);
}

std::string int8_condition() {
  return "input_quantization int8; i8, int4, q8_0, q4_0 or q4_1, contiguous weight rows";
}

std::vector<MemoryRange> first_reads(const LinearParams& p, int thread, int threads) {
  return {share_of(weight_of(p), thread, threads)};
}
std::vector<MemoryRange> first_reads(const QkvLinearParams& p, int thread, int threads) {
  const QkvWeights w(p);
  const std::int64_t total = units_of(w.q) + units_of(w.k) + units_of(w.v), begin = total * thread / threads,
                     end = total * (thread + 1) / threads;
  std::vector<MemoryRange> reads;
  std::int64_t first = 0;
  for (const Weight* weight : {&w.q, &w.k, &w.v}) {
    reads.push_back(range_of(*weight, row_of(*weight, begin, first), row_of(*weight, end, first)));
    first += units_of(*weight);
  }
  return reads;
}
std::vector<MemoryRange> first_reads(const GatedFfnParams& p, int thread, int threads) {
  return {share_of(FfnWeights(p).gate, thread, threads)};
}
std::vector<MemoryRange> first_reads(const LmHeadArgmaxParams& p, int thread, int threads) {
  return {share_of(weight_of(p), thread, threads)};
}

template <Units kUnits>
std::size_t workspace(const LinearParams& p, const PlanContext& ctx) {
  Workspace space(nullptr);
  input_of(p, kUnits, space);
  const GemvLora lora(p, space);
  const Shares shares(space, ctx.num_threads);
  return space.bytes();
}
template <Units kUnits>
std::size_t workspace(const QkvLinearParams& p, const PlanContext& ctx) {
  Workspace space(nullptr);
  input_of(p, kUnits, space);
  const Shares shares(space, ctx.num_threads);
  return space.bytes();
}

Support supports(const LinearParams& p, const PlanContext& ctx) {
  return all_of(
      {full_precision(p, ctx), few_tokens(p.x, weight_of(p), ctx), rows_contiguous("weight", weight_of(p))});
}

Support supports_matrix(const LinearParams& p, const PlanContext& ctx) {
  if (p.lora.present()) return Support::no("an adapter: this kernel multiplies one weight");
  const Weight weight = weight_of(p);
  return all_of({on_tiles(p, {&weight}, ctx), rows_contiguous("weight", weight)});
}

Support supports_int8(const LinearParams& p, const PlanContext&) {
  return all_of({in_8_bits(p.input_quantization), multiplies_codes("weight", weight_of(p))});
}

namespace {

Support is_primitive(const LinearParams& p) {
  if (!p.prologue.empty() || p.activation != Activation::none || p.residual.present() || p.lora.present())
    return Support::no("a prologue, activation, residual or adapter: this row is the unfused linear layer");
  return Support::yes();
}

}  // namespace

Support supports_int8_primitive(const LinearParams& p, const PlanContext& ctx) {
  return all_of({is_primitive(p), supports_int8(p, ctx)});
}

Support supports_matrix_primitive(const LinearParams& p, const PlanContext& ctx) {
  return all_of({is_primitive(p), supports_matrix(p, ctx)});
}

Support supports_primitive(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = is_primitive(p); !s) return s;
  if (p.weight.dtype == DType::f32 && !p.weight_sparsity.present())
    return Support::no("weight f32: unfused, it is the library's GEMM");
  return supports(p, ctx);
}

namespace {

template <Units kUnits>
void run_pass(const LinearParams& p, const RunContext& ctx) {
  Workspace space(ctx.workspace);
  const GemvInput input = input_of(p, kUnits, space);
  const Weight weight = weight_of(p);
  const GemvLora lora(p, space);
  const Shares shares(space, ctx.num_threads);
  const Layer layer{weight, {p.bias, p.residual, p.out, p.activation}, lora.present() ? &lora : nullptr};
  prepare_alone(p.x, p.prologue, input);
  run_team(team_of(ctx, {&weight}), [&](const Member& member) {
    prepare_together(p.x, p.prologue, input, member);
    if (lora.present()) {
      lora.project(input, member.thread, member.threads);
      member.meet();
    }
    run_layers({&layer, 1}, input, {shares, member});
  });
}

}  // namespace

template <Units kUnits>
void run(const LinearParams& p, const RunContext& ctx) {
  run_passes(p, ctx, run_pass<kUnits>);
}

Support supports(const QkvLinearParams& p, const PlanContext& ctx) {
  const QkvWeights w(p);
  return all_of({full_precision(p, ctx), few_tokens(p.x, w.q, ctx), rows_contiguous("q_weight", w.q),
                 rows_contiguous("k_weight", w.k), rows_contiguous("v_weight", w.v)});
}

Support supports_matrix(const QkvLinearParams& p, const PlanContext& ctx) {
  const QkvWeights w(p);
  return all_of({on_tiles(p, {&w.q, &w.k, &w.v}, ctx), rows_contiguous("q_weight", w.q),
                 rows_contiguous("k_weight", w.k), rows_contiguous("v_weight", w.v)});
}

Support supports_int8(const QkvLinearParams& p, const PlanContext&) {
  const QkvWeights w(p);
  return all_of({in_8_bits(p.input_quantization), multiplies_codes("q_weight", w.q),
                 multiplies_codes("k_weight", w.k), multiplies_codes("v_weight", w.v)});
}

namespace {

template <Units kUnits>
void run_pass(const QkvLinearParams& p, const RunContext& ctx) {
  Workspace space(ctx.workspace);
  const GemvInput input = input_of(p, kUnits, space);
  const Shares shares(space, ctx.num_threads);
  const QkvWeights w(p);
  const Layer layers[] = {{w.q, {p.q_bias, {}, p.q}}, {w.k, {p.k_bias, {}, p.k}}, {w.v, {p.v_bias, {}, p.v}}};
  prepare_alone(p.x, p.prologue, input);
  run_team(team_of(ctx, {&w.q, &w.k, &w.v}), [&](const Member& member) {
    prepare_together(p.x, p.prologue, input, member);
    run_layers(layers, input, {shares, member});
  });
}

}  // namespace

template <Units kUnits>
void run(const QkvLinearParams& p, const RunContext& ctx) {
  run_passes(p, ctx, run_pass<kUnits>);
}

// gated_ffn: two layers, the second over what the first leaves in the workspace.

namespace {

// The order of nibbles has units of more features than threads share well: whoever makes the last feature of a unit brings it into
// that order.
class NibbleUnits {
 public:
  NibbleUnits(Workspace& space, std::int64_t features)
      : features_(features),
        unit_(nibble_unit()),
        made_(
            space.take<std::atomic<std::int64_t>>(static_cast<std::size_t>((features + unit_ - 1) / unit_))) {
    if (space.counting()) return;
    for (std::int64_t i = 0; i * unit_ < features_; ++i) new (&made_[i]) std::atomic<std::int64_t>(0);
  }

  // Features [begin, end) of all tokens are made.
  void add(const GemvInput& hidden, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t i = begin / unit_; i * unit_ < end; ++i) {
      const std::int64_t first = i * unit_, last = std::min(first + unit_, features_);
      const std::int64_t more = std::min(end, last) - std::max(begin, first);
      if (made_[i].fetch_add(more, std::memory_order_acq_rel) + more < last - first) continue;
      for (int t = 0; t < hidden.num_tokens; ++t) fill_nibbles(hidden, t, first, last);
    }
  }

 private:
  std::int64_t features_, unit_;
  std::atomic<std::int64_t>* made_;
};

struct FfnSpace {
  GemvInput input, hidden;
  NibbleUnits units;
  Shares gates, down;
};
FfnSpace take_ffn(const GatedFfnParams& p, const FfnWeights& w, Units units, int num_threads,
                  Workspace& space) {
  const std::int64_t num_tokens = pass_tokens(p);
  return {take_input(space, p, num_tokens, p.x.dim(1), units, {&w.gate, &w.up}),
          take_input(space, p, num_tokens, w.gate.layout.dim(0), units, {&w.down}),
          NibbleUnits(space, w.gate.layout.dim(0)), Shares(space, num_threads), Shares(space, num_threads)};
}

}  // namespace

template <Units kUnits>
std::size_t workspace(const GatedFfnParams& p, const PlanContext& ctx) {
  Workspace space(nullptr);
  take_ffn(p, FfnWeights(p), kUnits, ctx.num_threads, space);
  return space.bytes();
}

Support supports_int8(const GatedFfnParams& p, const PlanContext&) {
  const FfnWeights w(p);
  return all_of({in_8_bits(p.input_quantization), multiplies_codes("gate_weight", w.gate),
                 multiplies_codes("up_weight", w.up), multiplies_codes("down_weight", w.down)});
}

Support supports_matrix(const GatedFfnParams& p, const PlanContext& ctx) {
  const FfnWeights w(p);
  return all_of({on_tiles(p, {&w.gate, &w.up, &w.down}, ctx), rows_contiguous("gate_weight", w.gate),
                 rows_contiguous("up_weight", w.up), rows_contiguous("down_weight", w.down)});
}

Support supports(const GatedFfnParams& p, const PlanContext& ctx) {
  const FfnWeights w(p);
  return all_of({full_precision(p, ctx), few_tokens(p.x, w.gate, ctx), rows_contiguous("gate_weight", w.gate),
                 rows_contiguous("up_weight", w.up), rows_contiguous("down_weight", w.down)});
}

namespace {

// Hidden features [first_row, end_row) of all tokens, in the forms that the second layer reads.
void run_gates(Activation activation, const FfnWeights& w, const FfnSpace& s, std::int64_t first_row,
               std::int64_t end_row) {
  const GemvInput &input = s.input, &hidden = s.hidden;
  float gate[kMaxTokens * kChunk], up[kMaxTokens * kChunk];
  if (first_row == end_row) return;
  const std::int64_t chunk = chunk_of(w.gate, input);
  for (std::int64_t begin = first_row; begin < end_row; begin += chunk) {
    const std::int64_t end = std::min(end_row, begin + chunk);
    for_each_group(input, [&](int first, const GemvInput& some) {
      dot_rows(w.gate, some, begin, end, gate, kChunk);
      dot_rows(w.up, some, begin, end, up, kChunk);
      for (int t = 0; t < some.num_tokens; ++t)
        gate_sums(activation, gate + t * kChunk, up + t * kChunk, end - begin,
                  hidden.token(first + t) + begin);
    });
  }
  if (hidden.codes.rows != nullptr) return;
  if (end_row == hidden.in)
    for (int t = 0; t < input.num_tokens; ++t)
      std::fill(hidden.token(t) + hidden.in, hidden.token(t) + hidden.value_stride, 0.0f);
  if (hidden.tiles != nullptr) return fill_token_tiles(hidden, first_row, end_row);
  s.units.add(hidden, first_row, end_row);
}

}  // namespace

namespace {

template <Units kUnits>
void run_pass(const GatedFfnParams& p, const RunContext& ctx) {
  const FfnWeights w(p);
  Workspace space(ctx.workspace);
  const FfnSpace s = take_ffn(p, w, kUnits, ctx.num_threads, space);
  const Layer down{w.down, {{}, p.residual, p.out}};
  const std::int64_t hidden_features = w.gate.layout.dim(0), out_features = w.down.layout.dim(0);
  prepare_alone(p.x, p.prologue, s.input);
  run_team(team_of(ctx, {&w.gate, &w.up, &w.down}), [&](const Member& member) {
    prepare_together(p.x, p.prologue, s.input, member);
    const Worker gates{s.gates, member}, rows{s.down, member};
    gates.take(hidden_features, kRowUnit, row_bytes(w.gate) + row_bytes(w.up),
               [&](std::int64_t begin, std::int64_t end) { run_gates(p.activation, w, s, begin, end); });
    const MemoryRange next = share_of(w.down, member.thread, member.threads);
    member.meet({&next, 1});
    if (s.hidden.codes.rows != nullptr) {  // the scale of a token is that of all threads' values
      for (int t = member.thread; t < s.hidden.num_tokens; t += member.threads) quantize_token(s.hidden, t);
      member.meet();
    }
    rows.take(out_features, kRowUnit, row_bytes(w.down),
              [&](std::int64_t begin, std::int64_t end) { run_rows(down, s.hidden, begin, end); });
  });
}

}  // namespace

template <Units kUnits>
void run(const GatedFfnParams& p, const RunContext& ctx) {
  run_passes(p, ctx, run_pass<kUnits>);
}

// lm_head_argmax: every thread keeps the best of its rows; the logits live in a chunk of sums only.

namespace {

// A thread's best rows, one of each token, in a cache line of its own.
struct alignas(64) Best {
  float max[kMaxTokens];
  std::int32_t index[kMaxTokens];  // -1: none yet
};

struct ArgmaxSpace {
  GemvInput input;
  Best* best;  // [num_threads]
  Shares shares;
};
ArgmaxSpace take_argmax(const LmHeadArgmaxParams& p, Units units, int num_threads, Workspace& space) {
  const Weight weight = weight_of(p);
  return {take_input(space, p, pass_tokens(p), p.x.dim(1), units, {&weight}),
          space.take<Best>(static_cast<std::size_t>(num_threads)), Shares(space, num_threads)};
}

}  // namespace

template <Units kUnits>
std::size_t workspace(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  Workspace space(nullptr);
  take_argmax(p, kUnits, ctx.num_threads, space);
  return space.bytes();
}

Support supports_int8(const LmHeadArgmaxParams& p, const PlanContext&) {
  return all_of({in_8_bits(p.input_quantization), multiplies_codes("weight", weight_of(p))});
}

Support supports_matrix(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  const Weight weight = weight_of(p);
  return all_of({on_tiles(p, {&weight}, ctx), rows_contiguous("weight", weight)});
}

Support supports(const LmHeadArgmaxParams& p, const PlanContext& ctx) {
  return all_of(
      {full_precision(p, ctx), few_tokens(p.x, weight_of(p), ctx), rows_contiguous("weight", weight_of(p))});
}

namespace {

void offer(Best& best, int t, float value, std::int32_t index) {
  if (!argmax_before(value, index, best.max[t], best.index[t])) return;
  best.max[t] = value;
  best.index[t] = index;
}

void best_of_rows(const Weight& weight, const GemvInput& input, std::int64_t first_row, std::int64_t end_row,
                  Best& best) {
  float sums[kMaxTokens * kChunk];
  for (std::int64_t begin = first_row; begin < end_row; begin += kChunk) {
    const std::int64_t end = std::min(end_row, begin + kChunk);
    dot_rows(weight, input, begin, end, sums, kChunk);
    for (int t = 0; t < input.num_tokens; ++t)
      for (std::int64_t i = 0; i < end - begin; ++i)
        offer(best, t, sums[t * kChunk + i], static_cast<std::int32_t>(begin + i));
  }
}

}  // namespace

namespace {

template <Units kUnits>
void run_pass(const LmHeadArgmaxParams& p, const RunContext& ctx) {
  Workspace space(ctx.workspace);
  const ArgmaxSpace s = take_argmax(p, kUnits, ctx.num_threads, space);
  const Weight weight = weight_of(p);
  for (int i = 0; i < ctx.num_threads; ++i) std::fill_n(s.best[i].index, kMaxTokens, -1);
  prepare_alone(p.x, p.prologue, s.input);
  run_team(team_of(ctx, {&weight}), [&](const Member& member) {
    prepare_together(p.x, p.prologue, s.input, member);
    const Worker worker{s.shares, member};
    worker.take(weight.layout.dim(0), kRowUnit, row_bytes(weight), [&](std::int64_t begin, std::int64_t end) {
      best_of_rows(weight, s.input, begin, end, s.best[member.thread]);
    });
  });
  for (int t = 0; t < s.input.num_tokens; ++t) {
    for (int i = 1; i < ctx.num_threads; ++i)
      if (s.best[i].index[t] >= 0) offer(s.best[0], t, s.best[i].max[t], s.best[i].index[t]);
    p.ids.as<std::int32_t>()[t * p.ids.stride(0)] = s.best[0].index[t];
    if (p.max.present()) p.max.as<float>()[t * p.max.stride(0)] = s.best[0].max[t];
  }
}

}  // namespace

template <Units kUnits>
void run(const LmHeadArgmaxParams& p, const RunContext& ctx) {
  run_passes(p, ctx, run_pass<kUnits>);
}

template std::size_t workspace<Units::vector>(const LinearParams&, const PlanContext&);
template void run<Units::vector>(const LinearParams&, const RunContext&);
template std::size_t workspace<Units::matrix>(const LinearParams&, const PlanContext&);
template void run<Units::matrix>(const LinearParams&, const RunContext&);
template std::size_t workspace<Units::vector>(const QkvLinearParams&, const PlanContext&);
template void run<Units::vector>(const QkvLinearParams&, const RunContext&);
template std::size_t workspace<Units::matrix>(const QkvLinearParams&, const PlanContext&);
template void run<Units::matrix>(const QkvLinearParams&, const RunContext&);
template std::size_t workspace<Units::vector>(const GatedFfnParams&, const PlanContext&);
template void run<Units::vector>(const GatedFfnParams&, const RunContext&);
template std::size_t workspace<Units::matrix>(const GatedFfnParams&, const PlanContext&);
template void run<Units::matrix>(const GatedFfnParams&, const RunContext&);
template std::size_t workspace<Units::vector>(const LmHeadArgmaxParams&, const PlanContext&);
template void run<Units::vector>(const LmHeadArgmaxParams&, const RunContext&);
template std::size_t workspace<Units::matrix>(const LmHeadArgmaxParams&, const PlanContext&);
template void run<Units::matrix>(const LmHeadArgmaxParams&, const RunContext&);

}  // namespace kf::cpu::gemv
