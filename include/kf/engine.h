// An engine runs a model: it holds the graph, the packed weights, the cache and the executables, and takes
// steps. A step feeds new tokens to some sequences (whole prompts, chunks of them, single tokens, in any
// mixture) and gives logits, or greedy choices, for the rows that were asked for. generate.h makes text of
// it.
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kf/dispatch.h"
#include "kf/executable.h"
#include "kf/graph.h"
#include "kf/kv_cache.h"
#include "kf/model.h"
#include "kf/rules.h"
#include "kf/verdict_store.h"

namespace kf {

class StepTables;
struct StepTableUse;

struct EngineOptions {
  FusionPolicy fusion;
  // What no rule joined may be served by vanilla kernels, where they are the best there are.
  Selection selection = {.families = kCustom | kFused | kLibrary | kVanilla, .kernel = {}};
  std::int64_t max_seq_len = 0;        // of one sequence; 0: as many as the model takes, at most 4096
  std::int64_t max_batch_size = 4;     // sequences a step
  std::int64_t max_step_tokens = 512;  // tokens a step; longer prompts are fed in chunks
  // num_pages 0: enough for max_batch_size sequences of max_seq_len; page_size 0: one page a sequence
  KvCacheOptions cache;
  DType activation_dtype = DType::f32;
  int num_threads = 0;               // 0: the backend's default
  std::size_t max_executables = 32;  // planned step shapes kept; the least recently used goes first
  VerdictStore* verdicts = nullptr;  // of measured fusion, not owned; null: the engine remembers for itself
  Sink* sink = nullptr;              // told of every kernel call, not owned
  // Packed weights, shared with other engines over the same weights; null: the engine's own.
  std::shared_ptr<PackCache> packs = nullptr;

  // Where the model runs. What is on the host of the weights is copied there, once; what a step gives comes back.
  Device device = {};
  void* stream = nullptr;  // the queue of that device which steps are given to; null: its default one
  // From the second step of a shape on, its launches are replayed from a recording (a CUDA graph), where the device records
  // and every kernel allows it: Engine::replayable() says whether. Steps of one token a sequence are then padded to batches
  // of 1, 2, 4, 8 ..., so that few recordings serve all. A step with a sink is not replayed.
  bool replay = true;
  std::span<const Backend* const> backends = all_backends();

  // The baseline: the same graph, no rule applied, kernels as an eager framework has them, a contiguous
  // cache.
  static EngineOptions unfused(std::int64_t max_seq_len = 0);
};

// Which of a sequence's new tokens give a row of output.
enum class Rows : std::uint8_t { none, last, all };

struct StepInput {
  SequenceId sequence;
  std::span<const std::int32_t> tokens;  // at least one
  Rows rows = Rows::last;
};

// The sizes that a step is planned for.
struct StepShape {
  StepOutput output = StepOutput::logits;
  std::int64_t num_tokens = 1;
  std::int64_t batch_size = 1;
  std::int64_t num_rows = 1;
  std::int64_t max_pages = 1;     // columns of the block tables
  std::int64_t seqlen_k_max = 1;  // width of the score matrices
  auto operator<=>(const StepShape&) const = default;
  SymbolValues symbols() const;
};

// Of a step; of decode() the sums over its steps, but for the launches, which are those of the last.
struct StepMetrics {
  std::int64_t num_tokens = 0;
  int launches = 0;                  // kernels
  bool replayed = false;             // from a recording of its launches
  std::size_t activation_bytes = 0;  // the arena: intermediates and workspaces
  double plan_seconds = 0;           // fusing and planning; 0 where the shape was known
  double run_seconds = 0;
};

// The graph as it runs for steps of one shape, and what became of each rule.
struct FusedGraph {
  Graph graph;
  std::vector<Applied> applied;
};

// For one caller at a time: while a step, a plan or generate() is under way, another call (from another
// thread, or from generate()'s callback) is refused with invalid_argument and changes nothing. The cache is
// not guarded: see EngineUse. The memory of the weights must outlive the engine (of those that it copies to a device, its
// constructor).
class Engine {
 public:
  Engine(const ModelConfig& config, const NamedTensors& weights, const EngineOptions& options = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // One row for each token asked for, in the order of the batch: logits [num_rows, vocab_size] in the
  // activation dtype, or i32 ids [num_rows]; on the host, whatever the device. The view lasts until the next call of the
  // engine. On error no sequence has changed.
  TensorView step(std::span<const StepInput> batch, StepOutput output = StepOutput::logits);
  // `count` steps: the first feeds each sequence its one token, each other one what the step before chose, greedily. Ids
  // i32 [count, batch size], on the host. On a device nothing waits for the host in between. On error no sequence has changed.
  TensorView decode(std::span<const StepInput> batch, std::int64_t count);
  // Does the work ahead of the first step of this shape: fusing, measuring, packing, planning.
  void prepare(const StepShape& shape);
  // The shape of a step with these sizes, the longest of its sequences then having `context_len` tokens.
  // Throws invalid_argument where the options do not allow such a step.
  StepShape shape_of(StepOutput output, std::int64_t num_tokens, std::int64_t batch_size,
                     std::int64_t num_rows, std::int64_t context_len) const;

  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }
  Dispatcher& dispatcher() { return dispatcher_; }
  const ModelConfig& config() const { return config_; }
  const EngineOptions& options() const { return options_; }  // with defaults filled in

  const StepMetrics& last_step() const { return last_step_; }
  std::size_t peak_activation_bytes() const { return peak_activation_bytes_; }  // the largest of all steps
  std::size_t packed_bytes() const { return packs_->bytes(); }                  // what packed weights take

  // A step before fusion, after it, and as the kernels that run; references last until the next step or call.
  const Graph& graph(StepOutput output);
  const FusedGraph& fused_graph(const StepShape& shape);
  std::string explain(const StepShape& shape);
  // Whether steps of this shape are replayed, or why not.
  Support replayable(const StepShape& shape);

 private:
  friend class EngineUse;
  struct Planned {
    StepShape shape;
    FusedGraph fused;
    std::unique_ptr<Executable> executable;
    std::uint64_t last_used = 0;
    bool has_run = false;
  };

  TensorView run_step(std::span<const StepInput> batch, StepOutput output);
  TensorView run_enqueue(std::span<const StepInput> batch, StepOutput output);
  TensorView run_decode(std::span<const StepInput> batch, std::int64_t count);
  const Graph& graph_of(StepOutput output);
  void check(std::span<const StepInput> batch) const;
  void check(const StepShape& shape) const;
  void check(std::span<const StepInput> batch, std::int64_t count) const;
  Planned& planned(const StepShape& shape);
  void bind(Executable& executable, const StepShape& shape) const;
  bool replays() const;
  Support replayable(const Planned& planned) const;
  TensorView enqueue(std::span<const StepInput> batch, StepOutput output, const StepTableUse& use);
  template <class F>
  void with_room(std::span<const StepInput> batch, std::int64_t times, F&& run);
  void* results_of(std::size_t bytes);
  void cap(const TensorView& logits);
  Launch launch() const { return {.stream = options_.stream}; }
  std::int64_t max_pages() const { return cache_.pages_for(options_.max_seq_len); }

  ModelConfig config_;
  EngineOptions options_;
  DispatcherSet dispatchers_;
  Dispatcher& dispatcher_;
  std::vector<StoredTensor> placed_;  // weights and tables that were copied to the device
  NamedTensors weights_;
  std::shared_ptr<PackCache> packs_;
  VerdictStore own_verdicts_;
  ModelRope rope_;
  RopeViews placed_rope_;
  KvCache cache_;
  std::unique_ptr<StepTables> tables_;
  std::shared_ptr<void> results_;  // a device's, on the host
  std::size_t results_bytes_ = 0;
  std::array<std::unique_ptr<const Graph>, 2> graphs_;  // by StepOutput, made on first use
  std::vector<Planned> planned_;
  std::vector<KvCache::Growth> growths_;  // of the step under way
  std::uint64_t clock_ = 0;               // counts uses of plans
  double plan_seconds_ = 0;               // of the last plan looked up
  StepMetrics last_step_;
  std::size_t peak_activation_bytes_ = 0;
  std::atomic<std::thread::id> user_{};  // the thread that has an EngineUse; none: free
};

// Holds an engine for a caller. Throws invalid_argument where another has it.
class EngineUse {
 public:
  // `inner`: what a callback may do within its own thread's use (look at the cache, make and release
  // sequences).
  enum class Kind : std::uint8_t { exclusive, inner };
  explicit EngineUse(Engine& engine, Kind kind = Kind::exclusive);
  ~EngineUse();
  EngineUse(const EngineUse&) = delete;
  EngineUse& operator=(const EngineUse&) = delete;

  // What the engine does, without claiming it for itself.
  TensorView step(std::span<const StepInput> batch, StepOutput output = StepOutput::logits) {
    return engine_.run_step(batch, output);
  }
  // A step whose rows stay on the device, where they are once the stream has come so far.
  TensorView enqueue(std::span<const StepInput> batch, StepOutput output) {
    return engine_.run_enqueue(batch, output);
  }
  TensorView decode(std::span<const StepInput> batch, std::int64_t count) {
    return engine_.run_decode(batch, count);
  }
  void prepare(const StepShape& shape) { engine_.planned(shape); }
  const Graph& graph(StepOutput output) { return engine_.graph_of(output); }
  const FusedGraph& fused_graph(const StepShape& shape) { return engine_.planned(shape).fused; }
  std::string explain(const StepShape& shape) { return engine_.planned(shape).executable->to_text(); }
  Support replayable(const StepShape& shape) { return engine_.replayable(engine_.planned(shape)); }

 private:
  Engine& engine_;
  bool holds_ = false;  // not: the use around this one does
};

}  // namespace kf
