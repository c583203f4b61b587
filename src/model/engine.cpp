#include "kf/engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <limits>

#include <fmt/format.h>

#include "kf/error.h"

namespace kf {
namespace {

// Widths of score matrices grow by this, so that an unfused decode is planned anew every 64 tokens and not
// every one.
constexpr std::int64_t kSeqlenBucket = 64;
constexpr std::int64_t kDefaultMaxSeqLen = 4096;
constexpr std::int64_t kMaxSize = std::numeric_limits<std::int32_t>::max();  // tables are 32-bit

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
std::int64_t next_power_of_two(std::int64_t n) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(n, 1))));
}

void require(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most)
    throw_invalid(fmt::format("engine: {} must be {} to {}, got {}", name, least, most, value));
}

EngineOptions with_defaults(EngineOptions o, const ModelConfig& config) {
  config.validate();
  const std::int64_t longest = config.longest_sequence();
  if (o.max_seq_len == 0) o.max_seq_len = std::min(longest, kDefaultMaxSeqLen);
  if (o.max_seq_len < 1 || o.max_seq_len > longest) {
    throw_invalid(fmt::format("engine: max_seq_len must be 1 to {}{}, got {}", longest,
                              longest < config.max_positions ? " (the model's sliding window)" : "",
                              o.max_seq_len));
  }
  require("max_batch_size", o.max_batch_size, 1, kMaxSize);
  require("max_step_tokens", o.max_step_tokens, o.max_batch_size, kMaxSize);
  require("num_threads", o.num_threads, 0, kMaxThreads);
  require("max_executables", static_cast<std::int64_t>(std::min<std::size_t>(o.max_executables, kMaxSize)), 1,
          1 << 16);
  require("page_size", o.cache.page_size, 0, kMaxSize);
  if (o.cache.page_size == 0) o.cache.page_size = round_up(o.max_seq_len, kSeqlenBucket);
  if (o.cache.num_pages == 0) {
    o.cache.num_pages = o.max_batch_size * (round_up(o.max_seq_len, o.cache.page_size) / o.cache.page_size);
  }
  return o;
}

// The first elements of a buffer, in the shape that a step has them.
TensorView prefix(const Tensor& buffer, std::initializer_list<std::int64_t> shape) {
  return TensorView::contiguous(buffer.view().data, buffer.view().dtype, shape);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

EngineOptions EngineOptions::unfused(std::int64_t max_seq_len) {
  EngineOptions o;
  o.fusion.mode = FusionPolicy::Mode::none;
  o.selection.families = kVanilla;
  o.max_seq_len = max_seq_len;
  o.cache.page_size = 0;
  return o;
}

SymbolValues StepShape::symbols() const {
  return {{symbols::kNumTokens, num_tokens},
          {symbols::kBatchSize, batch_size},
          {symbols::kBatchSizePlus1, batch_size + 1},
          {symbols::kNumRows, num_rows},
          {symbols::kMaxPages, max_pages},
          {symbols::kSeqlenKMax, seqlen_k_max}};
}

Engine::StepTables::StepTables(const EngineOptions& o, std::int64_t max_pages)
    : ids(DType::i32, {o.max_step_tokens}),
      positions(DType::i32, {o.max_step_tokens}),
      slot_mapping(DType::i64, {o.max_step_tokens}),
      cu_seqlens_q(DType::i32, {o.max_batch_size + 1}),
      block_tables(DType::i32, {o.max_batch_size, max_pages}),
      context_lens(DType::i32, {o.max_batch_size}),
      rows(DType::i32, {o.max_step_tokens}) {}

Engine::Engine(const ModelConfig& config, const NamedTensors& weights, const EngineOptions& options)
    : config_(config),
      options_(with_defaults(options, config)),
      weights_((check_weights(config, weights), weights)),
      dispatcher_(std::make_unique<Dispatcher>(
          backend_by_name("cpu"),
          DispatcherOptions{.num_threads = options.num_threads, .sink = options.sink})),
      packs_(options.packs ? options.packs : std::make_shared<PackCache>()),
      rope_(make_rope_tables(config, weights, options_.max_seq_len)),
      cache_(config.num_layers, config.num_kv_heads, config.head_dim, options_.cache),
      tables_(options_, max_pages()) {
  planned_.reserve(options_.max_executables);
  growths_.reserve(options_.max_batch_size);
}

EngineUse::EngineUse(Engine& engine, Kind kind) : engine_(engine) {
  std::thread::id user;
  holds_ = engine.user_.compare_exchange_strong(user, std::this_thread::get_id());
  if (holds_ || (kind == Kind::inner && user == std::this_thread::get_id())) return;
  throw_invalid(fmt::format("engine: in use: a call is under way {}",
                            user == std::this_thread::get_id() ? "around this one" : "in another thread"));
}

EngineUse::~EngineUse() {
  if (holds_) engine_.user_.store({});
}

void Engine::prepare(const StepShape& shape) { EngineUse(*this).prepare(shape); }
const Graph& Engine::graph(StepOutput output) { return EngineUse(*this).graph(output); }
const FusedGraph& Engine::fused_graph(const StepShape& shape) { return EngineUse(*this).fused_graph(shape); }
std::string Engine::explain(const StepShape& shape) { return EngineUse(*this).explain(shape); }

const Graph& Engine::graph_of(StepOutput output) {
  std::unique_ptr<const Graph>& graph = graphs_[static_cast<std::size_t>(output)];
  if (!graph) {
    graph = std::make_unique<const Graph>(
        build_graph(config_, weights_, rope_, options_.cache, output, options_.activation_dtype));
  }
  return *graph;
}

StepShape Engine::shape_of(StepOutput output, std::int64_t num_tokens, std::int64_t batch_size,
                           std::int64_t num_rows, std::int64_t context_len) const {
  StepShape shape{.output = output, .num_tokens = num_tokens, .batch_size = batch_size, .num_rows = num_rows};
  require("context_len of a step", context_len, 1, options_.max_seq_len);
  check(shape);
  shape.max_pages = std::min(next_power_of_two(cache_.pages_for(context_len)), max_pages());
  // Fused attention has no scores. A paged cache's width follows its table, so that it adds no shapes of its
  // own.
  const std::int64_t capacity = shape.max_pages * options_.cache.page_size;
  const bool contiguous = max_pages() == 1;
  shape.seqlen_k_max = contiguous ? std::min(round_up(context_len, kSeqlenBucket), capacity) : capacity;
  return shape;
}

// A shape may come from another engine.
void Engine::check(const StepShape& s) const {
  require("num_tokens of a step", s.num_tokens, 1, options_.max_step_tokens);
  require("batch_size of a step", s.batch_size, 1, std::min(options_.max_batch_size, s.num_tokens));
  require("num_rows of a step", s.num_rows, 0, s.num_tokens);
  require("max_pages of a step", s.max_pages, 1, max_pages());
}

Engine::Planned& Engine::planned(const StepShape& shape) {
  check(shape);
  const auto found = std::ranges::find(planned_, shape, &Planned::shape);
  if (found != planned_.end()) {
    found->last_used = ++clock_;
    plan_seconds_ = 0;
    return *found;
  }
  const auto start = std::chrono::steady_clock::now();
  Planned p;
  p.shape = shape;
  p.last_used = ++clock_;
  const SymbolValues symbols = shape.symbols();
  p.fused.graph = fuse(graph_of(shape.output), symbols, options_.fusion, *dispatcher_,
                       options_.verdicts != nullptr ? options_.verdicts : &own_verdicts_, &p.fused.applied);
  p.executable = std::make_unique<Executable>(
      p.fused.graph, symbols, *dispatcher_,
      Executable::Options{.selection = options_.selection, .packs = packs_.get()});
  bind(*p.executable, shape);
  if (planned_.size() == options_.max_executables) {
    planned_.erase(std::ranges::min_element(planned_, {}, &Planned::last_used));
  }
  planned_.push_back(std::move(p));
  plan_seconds_ = seconds_since(start);
  return planned_.back();
}

void Engine::bind(Executable& e, const StepShape& shape) const {
  e.bind("ids", prefix(tables_.ids, {shape.num_tokens}));
  e.bind("positions", prefix(tables_.positions, {shape.num_tokens}));
  e.bind("slot_mapping", prefix(tables_.slot_mapping, {shape.num_tokens}));
  e.bind("cu_seqlens_q", prefix(tables_.cu_seqlens_q, {shape.batch_size + 1}));
  e.bind("block_tables", prefix(tables_.block_tables, {shape.batch_size, shape.max_pages}));
  e.bind("context_lens", prefix(tables_.context_lens, {shape.batch_size}));
  e.bind("rows", prefix(tables_.rows, {shape.num_rows}));
  for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
    e.bind(fmt::format("k_cache.{}", layer), cache_.k(layer));
    e.bind(fmt::format("v_cache.{}", layer), cache_.v(layer));
    if (!needs_scales(options_.cache.dtype)) continue;
    e.bind(fmt::format("k_cache_scales.{}", layer), cache_.k_scales(layer));
    e.bind(fmt::format("v_cache_scales.{}", layer), cache_.v_scales(layer));
  }
}

void Engine::check(std::span<const StepInput> batch) const {
  if (static_cast<std::int64_t>(batch.size()) > options_.max_batch_size) {
    throw_invalid(fmt::format("step: at most {} sequences (max_batch_size), got {}", options_.max_batch_size,
                              batch.size()));
  }
  std::int64_t num_tokens = 0;
  for (const StepInput& in : batch) {
    if (in.tokens.empty()) throw_invalid(fmt::format("step: sequence {} has no new tokens", in.sequence));
    for (const std::int32_t id : in.tokens) {
      if (id < 0 || id >= config_.vocab_size) {
        throw_invalid(
            fmt::format("step: token id {} is not in the vocabulary of {}", id, config_.vocab_size));
      }
    }
    const auto count = static_cast<std::int64_t>(in.tokens.size());
    const std::int64_t length = cache_.length(in.sequence);
    if (length + count > options_.max_seq_len) {
      throw Error(ErrorCode::resource_exhausted,
                  fmt::format("step: sequence {} of {} tokens cannot take {} more: max_seq_len is {}",
                              in.sequence, length, count, options_.max_seq_len));
    }
    num_tokens += count;
  }
  if (num_tokens > options_.max_step_tokens) {
    throw_invalid(
        fmt::format("step: at most {} tokens (max_step_tokens), got {}; feed a longer prompt in chunks",
                    options_.max_step_tokens, num_tokens));
  }
}

// Reads the cache as extended for this batch.
StepShape Engine::fill_tables(std::span<const StepInput> batch, StepOutput output) {
  std::int32_t* ids = tables_.ids.as<std::int32_t>();
  std::int32_t* positions = tables_.positions.as<std::int32_t>();
  std::int64_t* slots = tables_.slot_mapping.as<std::int64_t>();
  std::int32_t* cu_seqlens_q = tables_.cu_seqlens_q.as<std::int32_t>();
  std::int32_t* context_lens = tables_.context_lens.as<std::int32_t>();
  std::int32_t* rows = tables_.rows.as<std::int32_t>();

  const std::int64_t page_size = options_.cache.page_size;
  std::int64_t t = 0, num_rows = 0, longest = 0;
  cu_seqlens_q[0] = 0;
  for (std::size_t b = 0; b < batch.size(); ++b) {
    const StepInput& in = batch[b];
    const std::int64_t length = cache_.length(in.sequence);
    const std::span<const std::int32_t> pages = cache_.pages(in.sequence);
    std::int64_t position = length - static_cast<std::int64_t>(in.tokens.size());
    for (std::size_t i = 0; i < in.tokens.size(); ++i, ++position, ++t) {
      ids[t] = in.tokens[i];
      positions[t] = static_cast<std::int32_t>(position);
      slots[t] = pages[position / page_size] * page_size + position % page_size;
      const bool wanted = in.rows == Rows::all || (in.rows == Rows::last && i + 1 == in.tokens.size());
      if (wanted) rows[num_rows++] = static_cast<std::int32_t>(t);
    }
    cu_seqlens_q[b + 1] = static_cast<std::int32_t>(t);
    context_lens[b] = static_cast<std::int32_t>(length);
    longest = std::max(longest, length);
  }

  const StepShape shape = shape_of(output, t, static_cast<std::int64_t>(batch.size()), num_rows, longest);
  for (std::size_t b = 0; b < batch.size(); ++b) {
    std::int32_t* table = tables_.block_tables.as<std::int32_t>() + b * shape.max_pages;
    const std::span<const std::int32_t> pages = cache_.pages(batch[b].sequence);
    std::fill(std::ranges::copy(pages, table).out, table + shape.max_pages, -1);
  }
  return shape;
}

TensorView Engine::step(std::span<const StepInput> batch, StepOutput output) {
  return EngineUse(*this).step(batch, output);
}

TensorView Engine::run_step(std::span<const StepInput> batch, StepOutput output) {
  check(batch);
  if (batch.empty()) {
    return output == StepOutput::ids
               ? TensorView::contiguous(nullptr, DType::i32, {0})
               : TensorView::contiguous(nullptr, options_.activation_dtype, {0, config_.vocab_size});
  }
  growths_.clear();
  for (const StepInput& in : batch)
    growths_.push_back({in.sequence, static_cast<std::int64_t>(in.tokens.size())});
  cache_.extend(growths_);
  try {
    const StepShape shape = fill_tables(batch, output);
    Executable& e = *planned(shape).executable;
    const auto start = std::chrono::steady_clock::now();
    e.run();
    last_step_ = {shape.num_tokens, e.launches(), e.peak_activation_bytes(), plan_seconds_,
                  seconds_since(start)};
    peak_activation_bytes_ = std::max(peak_activation_bytes_, last_step_.activation_bytes);
    return e.output(output == StepOutput::ids ? "ids" : "logits");
  } catch (...) {
    for (const KvCache::Growth& g : growths_)
      cache_.truncate(g.sequence, cache_.length(g.sequence) - g.num_tokens);
    throw;
  }
}

}  // namespace kf
