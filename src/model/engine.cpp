#include "kf/engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/half.h"
#include "kf/error.h"
#include "model/placement.h"
#include "model/step_tables.h"

namespace kf {
namespace {

// Widths of score matrices grow by this, so that an unfused decode is planned anew every 64 tokens and not
// every one.
constexpr std::int64_t kSeqlenBucket = 64;
constexpr std::int64_t kDefaultMaxSeqLen = 4096;
constexpr std::int64_t kStepsAhead = 16;  // enqueued on a device before the host waits
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
  if (o.max_seq_len == 0) o.max_seq_len = std::min(config.max_positions, kDefaultMaxSeqLen);
  require("max_seq_len", o.max_seq_len, 1, config.max_positions);
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

// The first elements of a table, in the shape that a step has them.
TensorView prefix(const TensorView& table, std::initializer_list<std::int64_t> shape) {
  return TensorView::contiguous(table.data, table.dtype, shape, table.device);
}

template <class T>
void cap_as(const TensorView& logits, float cap) {
  T* const x = logits.as<T>();
  for (std::int64_t i = 0; i < logits.numel(); ++i) x[i] = from_f32<T>(cap * std::tanh(to_f32(x[i]) / cap));
}

// In the host's memory.
void cap_logits(const TensorView& logits, float cap) {
  switch (logits.dtype) {
    case DType::f16:
      return cap_as<F16>(logits, cap);
    case DType::bf16:
      return cap_as<Bf16>(logits, cap);
    default:
      return cap_as<float>(logits, cap);
  }
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

Engine::Engine(const ModelConfig& config, const NamedTensors& weights, const EngineOptions& options)
    : config_(config),
      options_(with_defaults(options, config)),
      dispatchers_({.num_threads = options.num_threads, .sink = options.sink}, options.backends),
      dispatcher_(dispatchers_.on(options.device)),
      weights_((check_weights(config, weights), place_weights(weights, dispatcher_, launch(), placed_))),
      packs_(options.packs ? options.packs : std::make_shared<PackCache>()),
      rope_(make_rope_tables(config, weights, options_.max_seq_len)),
      placed_rope_(place_rope_tables(rope_, dispatcher_, launch(), placed_)),
      cache_(config.num_layers, config.num_kv_heads, config.head_dim, options_.cache,
             {dispatcher_.caps().device,
              [this](std::size_t bytes) { return dispatcher_.allocate(bytes, launch()); }}),
      tables_(std::make_unique<StepTables>(dispatcher_, options_.max_step_tokens, options_.max_batch_size,
                                           max_pages(), kStepsAhead)) {
  planned_.reserve(options_.max_executables);
  growths_.reserve(options_.max_batch_size);
  dispatcher_.synchronize();  // memory was allocated in the order of the default stream
}

Engine::~Engine() = default;

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
Support Engine::replayable(const StepShape& shape) { return EngineUse(*this).replayable(shape); }

const Graph& Engine::graph_of(StepOutput output) {
  std::unique_ptr<const Graph>& graph = graphs_[static_cast<std::size_t>(output)];
  if (!graph) {
    graph = std::make_unique<const Graph>(
        build_graph(config_, weights_, placed_rope_, options_.cache, output, options_.activation_dtype));
  }
  return *graph;
}

StepShape Engine::shape_of(StepOutput output, std::int64_t num_tokens, std::int64_t batch_size,
                           std::int64_t num_rows, std::int64_t context_len) const {
  StepShape shape{.output = output, .num_tokens = num_tokens, .batch_size = batch_size, .num_rows = num_rows};
  require("context_len of a step", context_len, 1, options_.max_seq_len);
  check(shape);
  shape.max_pages = std::min(next_power_of_two(cache_.pages_for(context_len)), max_pages());
  if (num_tokens == batch_size && num_rows == batch_size && replays()) {
    shape.num_tokens = std::min(next_power_of_two(batch_size), options_.max_batch_size);
    shape.batch_size = shape.num_rows = shape.num_tokens;
  }
  // Fused attention has no scores. A paged cache's width follows its table, so that it adds no shapes of its
  // own.
  const std::int64_t capacity = shape.max_pages * options_.cache.page_size;
  const bool contiguous = max_pages() == 1;
  shape.seqlen_k_max = contiguous ? std::min(round_up(context_len, kSeqlenBucket), capacity) : capacity;
  return shape;
}

bool Engine::replays() const {
  return options_.replay && dispatcher_.backend().recorder.record && dispatcher_.sink() == nullptr;
}

Support Engine::replayable(const Planned& p) const {
  if (!options_.replay) return Support::no("EngineOptions::replay is off");
  if (dispatcher_.sink() != nullptr) return Support::no("a sink is told of every call");
  return p.executable->recordable();
}

// Host memory for what a step gives, until the next.
void* Engine::results_of(std::size_t bytes) {
  if (bytes > results_bytes_) {
    results_ = dispatcher_.allocate_staging(bytes);
    results_bytes_ = bytes;
  }
  return results_.get();
}

// On the host, after the step, and of a device's logits there and back: the greedy choice needs none, since order stays.
void Engine::cap(const TensorView& logits) {
  if (dispatcher_.on_host() || logits.numel() == 0) return cap_logits(logits, config_.logit_softcap);
  TensorView here = logits;
  here.data = results_of(logits.nbytes());
  dispatcher_.copy(here.data, logits.data, logits.nbytes(), CopyDirection::to_host, launch());
  dispatcher_.synchronize(launch());
  cap_logits(here, config_.logit_softcap);
  dispatcher_.copy(logits.data, here.data, logits.nbytes(), CopyDirection::to_device, launch());
}

// Greedy steps of one token a sequence.
void Engine::check(std::span<const StepInput> batch, std::int64_t count) const {
  check(batch);
  require("count of steps", count, 0, options_.max_seq_len);
  for (const StepInput& in : batch) {
    if (in.tokens.size() != 1 || in.rows != Rows::last) {
      throw_invalid(fmt::format("decode: sequence {}: expected one token and its row, got {} tokens",
                                in.sequence, in.tokens.size()));
    }
    if (const std::int64_t length = cache_.length(in.sequence); length + count > options_.max_seq_len) {
      throw Error(ErrorCode::resource_exhausted,
                  fmt::format("decode: sequence {} of {} tokens cannot take {} more: max_seq_len is {}",
                              in.sequence, length, count, options_.max_seq_len));
    }
  }
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
  p.fused.graph = fuse(graph_of(shape.output), symbols, options_.fusion, dispatcher_,
                       options_.verdicts != nullptr ? options_.verdicts : &own_verdicts_, &p.fused.applied);
  p.executable = std::make_unique<Executable>(
      p.fused.graph, symbols, dispatcher_,
      Executable::Options{.selection = options_.selection, .packs = packs_.get()});
  bind(*p.executable, shape);
  dispatcher_.synchronize();  // packs and arenas are made in the order of the default stream
  if (planned_.size() == options_.max_executables) {
    planned_.erase(std::ranges::min_element(planned_, {}, &Planned::last_used));
  }
  planned_.push_back(std::move(p));
  plan_seconds_ = seconds_since(start);
  return planned_.back();
}

void Engine::bind(Executable& e, const StepShape& shape) const {
  const StepTables::Views& t = tables_->device();
  e.bind("ids", prefix(t.ids, {shape.num_tokens}));
  e.bind("positions", prefix(t.positions, {shape.num_tokens}));
  e.bind("slot_mapping", prefix(t.slot_mapping, {shape.num_tokens}));
  e.bind("cu_seqlens_q", prefix(t.cu_seqlens_q, {shape.batch_size + 1}));
  e.bind("block_tables", prefix(t.block_tables, {shape.batch_size, shape.max_pages}));
  e.bind("context_lens", prefix(t.context_lens, {shape.batch_size}));
  e.bind("rows", prefix(t.rows, {shape.num_rows}));
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

TensorView Engine::step(std::span<const StepInput> batch, StepOutput output) {
  return EngineUse(*this).step(batch, output);
}
TensorView Engine::decode(std::span<const StepInput> batch, std::int64_t count) {
  return EngineUse(*this).decode(batch, count);
}

// Enqueues a step of a batch that the cache was extended for. Returns where its rows will be, on the device.
TensorView Engine::enqueue(std::span<const StepInput> batch, StepOutput output, const StepTableUse& use) {
  const StepCounts n = counts_of(batch, cache_, use.ahead);
  const StepShape shape = shape_of(output, n.num_tokens, std::ssize(batch), n.num_rows, n.context_len);
  Planned& p = planned(shape);
  Executable& e = *p.executable;
  const auto start = std::chrono::steady_clock::now();
  tables_->put(batch, cache_, shape, use, launch());
  if (p.has_run && !e.recorded() && replayable(p)) e.record();
  e.run(launch());
  p.has_run = true;
  const TensorView rows = e.output(output == StepOutput::ids ? "ids" : "logits").slice(0, 0, n.num_rows);
  if (output == StepOutput::logits && config_.logit_softcap > 0) cap(rows);
  last_step_ = {.num_tokens = n.num_tokens,
                .launches = e.launches(),
                .replayed = e.recorded() && dispatcher_.sink() == nullptr,
                .activation_bytes = e.peak_activation_bytes(),
                .plan_seconds = plan_seconds_,
                .run_seconds = seconds_since(start)};
  peak_activation_bytes_ = std::max(peak_activation_bytes_, last_step_.activation_bytes);
  return rows;
}

// With room in the cache for `times` as many tokens of each sequence as the batch feeds; without, once it throws.
template <class F>
void Engine::with_room(std::span<const StepInput> batch, std::int64_t times, F&& run) {
  growths_.clear();
  for (const StepInput& in : batch) growths_.push_back({in.sequence, std::ssize(in.tokens) * times});
  cache_.extend(growths_);
  try {
    dispatcher_.synchronize(launch());  // a step that was only enqueued reads the tables
    run();
  } catch (...) {
    try {
      dispatcher_.synchronize(launch());  // what was enqueued reads the tables
    } catch (const Error&) {              // the first error is the one that tells
    }
    for (const KvCache::Growth& g : growths_)
      cache_.truncate(g.sequence, cache_.length(g.sequence) - g.num_tokens);
    throw;
  }
}

TensorView Engine::run_enqueue(std::span<const StepInput> batch, StepOutput output) {
  check(batch);
  if (batch.empty()) {
    return output == StepOutput::ids
               ? TensorView::contiguous(nullptr, DType::i32, {0})
               : TensorView::contiguous(nullptr, options_.activation_dtype, {0, config_.vocab_size});
  }
  TensorView rows;
  with_room(batch, 1, [&] { rows = enqueue(batch, output, {}); });
  return rows;
}

TensorView Engine::run_step(std::span<const StepInput> batch, StepOutput output) {
  if (dispatcher_.on_host() || batch.empty()) return run_enqueue(batch, output);
  check(batch);
  TensorView rows;
  with_room(batch, 1, [&] {
    rows = enqueue(batch, output, {});
    const auto start = std::chrono::steady_clock::now();
    void* const results = results_of(rows.nbytes());
    dispatcher_.copy(results, rows.data, rows.nbytes(), CopyDirection::to_host, launch());
    dispatcher_.synchronize(launch());
    rows.data = results;
    rows.device = {};
    last_step_.run_seconds += seconds_since(start);
  });
  return rows;
}

TensorView Engine::run_decode(std::span<const StepInput> batch, std::int64_t count) {
  check(batch, count);
  const std::int64_t width = std::ssize(batch);
  if (width == 0 || count == 0) return TensorView::contiguous(nullptr, DType::i32, {count, width});
  const std::size_t bytes = static_cast<std::size_t>(width) * sizeof(std::int32_t);
  auto* const results = static_cast<std::byte*>(results_of(static_cast<std::size_t>(count) * bytes));
  with_room(batch, count, [&] {
    const auto start = std::chrono::steady_clock::now();
    double plan_seconds = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      if (i > 0 && i % tables_->ahead() == 0) dispatcher_.synchronize(launch());  // its tables are used again
      const TensorView ids =
          enqueue(batch, StepOutput::ids, {.number = i, .ahead = count - 1 - i, .ids_there = i > 0});
      plan_seconds += last_step_.plan_seconds;
      dispatcher_.copy(results + static_cast<std::size_t>(i) * bytes, ids.data, bytes, CopyDirection::to_host,
                       launch());
      if (i + 1 < count)
        dispatcher_.copy(tables_->device().ids.data, ids.data, bytes, CopyDirection::on_device, launch());
    }
    dispatcher_.synchronize(launch());
    last_step_.num_tokens = width * count;
    last_step_.plan_seconds = plan_seconds;
    last_step_.run_seconds = seconds_since(start) - plan_seconds;
  });
  return TensorView::contiguous(results, DType::i32, {count, width});
}

}  // namespace kf
