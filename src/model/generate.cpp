#include "kf/generate.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>

#include <fmt/format.h>

#include "kf/error.h"
#include "kf/ops/sampling.h"

namespace kf {
namespace {

// Tokens that a request puts into the cache at most: the last new one is never fed.
std::int64_t final_length(const GenerateRequest& r) {
  return static_cast<std::int64_t>(r.prompt.size()) + std::max<std::int64_t>(r.max_new_tokens - 1, 0);
}

bool is_greedy(const GenerateRequest& r) { return r.sampling.temperature == 0.0f; }

SampleParams sample_params(const SamplingOptions& o) {
  SampleParams p;
  p.temperature = o.temperature;
  p.top_k = o.top_k;
  p.top_p = o.top_p;
  p.min_p = o.min_p;
  return p;
}

// Draws one request's tokens, where the logits are. The plan is made once: seed and step are not what a plan depends on.
class Sampler {
 public:
  Sampler(Engine& engine, const SamplingOptions& options)
      : dispatcher_(engine.dispatcher()),
        launch_{.stream = engine.options().stream},
        params_(sample_params(options)) {
    const Device device = dispatcher_.caps().device;
    const EngineOptions& o = engine.options();
    params_.logits =
        TensorView::contiguous(nullptr, o.activation_dtype, {1, engine.config().vocab_size}, device);
    params_.ids = TensorView::contiguous(nullptr, DType::i32, {1}, device);
    plan_ = dispatcher_.plan(params_, o.selection);
    workspace_ = dispatcher_.allocate(plan_->workspace_bytes(), launch_);
    params_.seed = options.seed;
  }

  // From one row of logits, into one id; on a device it is there once the stream has come so far.
  void draw(const TensorView& logits, const TensorView& id, std::int64_t step) {
    params_.logits = logits;
    params_.ids = id;
    params_.step = step;
    dispatcher_.execute(*plan_, &params_, workspace_.get(), launch_);
  }

 private:
  Dispatcher& dispatcher_;
  const Launch launch_;
  SampleParams params_;
  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<void> workspace_;
};

// A sequence of the cache until the end of a request, however that comes; a callback may have released it.
class HeldSequence {
 public:
  explicit HeldSequence(KvCache& cache) : cache_(cache), id_(cache.create()) {}
  ~HeldSequence() {
    if (cache_.contains(id_)) cache_.release(id_);
  }
  HeldSequence(const HeldSequence&) = delete;
  HeldSequence& operator=(const HeldSequence&) = delete;
  operator SequenceId() const { return id_; }

 private:
  KvCache& cache_;
  const SequenceId id_;
};

// A request under way.
class Running {
 public:
  Running(Engine& engine, std::size_t index, const GenerateRequest& request)
      : index(index), request(request), cache_(engine.cache()), sequence_(cache_) {
    if (!is_greedy(request)) sampler = std::make_unique<Sampler>(engine, request.sampling);
  }

  std::int64_t pages_to_come() const {
    return cache_.pages_for(final_length(request)) -
           static_cast<std::int64_t>(cache_.pages(sequence_).size());
  }
  bool in_prompt() const { return fed < request.prompt.size(); }
  // What to feed next: at most `budget` tokens of the prompt, or the newest token.
  StepInput next(std::size_t budget) const {
    if (!in_prompt()) return {sequence_, {&last_token, 1}, Rows::last};
    const std::size_t count = std::min(budget, request.prompt.size() - fed);
    const bool ends_prompt = fed + count == request.prompt.size();
    return {sequence_, std::span(request.prompt).subspan(fed, count), ends_prompt ? Rows::last : Rows::none};
  }

  const std::size_t index;
  const GenerateRequest& request;
  std::unique_ptr<Sampler> sampler;
  std::size_t fed = 0;  // tokens of the prompt
  std::int32_t last_token = 0;

 private:
  KvCache& cache_;
  const HeldSequence sequence_;
};

class Scheduler {
 public:
  Scheduler(Engine& engine, std::span<const GenerateRequest> requests, const TokenCallback& on_token)
      : engine_(engine), use_(engine), requests_(requests), on_token_(on_token), results_(requests.size()) {
    const std::int64_t rows = engine.options().max_batch_size;
    drawn_ = engine.dispatcher().make_tensor(DType::i32, {&rows, 1});
    drawn_on_host_.resize(static_cast<std::size_t>(rows));
  }

  std::vector<GenerateResult> run() && {
    for (std::size_t i = 0; i < requests_.size(); ++i) check(requests_[i], i);
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i].max_new_tokens > 0) waiting_.push_back(i);
    }
    while (!waiting_.empty() || !running_.empty()) {
      admit();
      if (const std::int64_t count = steps_ahead(); count > 1) {
        decode(count);
      } else {
        step();
      }
    }
    return std::move(results_);
  }

 private:
  void check(const GenerateRequest& r, std::size_t index) const {
    const auto fail = [&](ErrorCode code, const std::string& what) {
      throw Error(code, fmt::format("generate: request {}: {}", index, what));
    };
    if (r.prompt.empty()) fail(ErrorCode::invalid_argument, "the prompt is empty");
    if (r.max_new_tokens < 0) {
      fail(ErrorCode::invalid_argument,
           fmt::format("max_new_tokens must be 0 or more, got {}", r.max_new_tokens));
    }
    const std::int64_t vocab_size = engine_.config().vocab_size;
    for (const std::int32_t id : r.prompt) {
      if (id >= 0 && id < vocab_size) continue;
      fail(ErrorCode::invalid_argument,
           fmt::format("token id {} is not in the vocabulary of {}", id, vocab_size));
    }
    // In an order that cannot overflow.
    const std::int64_t limit = engine_.options().max_seq_len;
    if (r.max_new_tokens > limit || final_length(r) > limit) {
      fail(ErrorCode::resource_exhausted,
           fmt::format("a prompt of {} tokens and {} new ones exceed max_seq_len, {}", r.prompt.size(),
                       r.max_new_tokens, limit));
    }
    const std::int64_t pages = engine_.cache().pages_for(final_length(r));
    if (pages > engine_.cache().num_free_pages()) {
      fail(ErrorCode::resource_exhausted, fmt::format("it needs {} pages of the cache, {} are free", pages,
                                                      engine_.cache().num_free_pages()));
    }
    if (!is_greedy(r)) Sampler(engine_, r.sampling);  // refuses options out of range
  }

  // Requests start in their order, each when all pages that it may come to need are there beside those
  // promised to the running ones: none is ever stopped for want of pages.
  void admit() {
    std::int64_t pages = engine_.cache().num_free_pages();
    for (const auto& r : running_) pages -= r->pages_to_come();
    while (!waiting_.empty() &&
           static_cast<std::int64_t>(running_.size()) < engine_.options().max_batch_size) {
      const GenerateRequest& request = requests_[waiting_.front()];
      const std::int64_t needed = engine_.cache().pages_for(final_length(request));
      if (needed > pages) break;
      pages -= needed;
      running_.push_back(std::make_unique<Running>(engine_, waiting_.front(), request));
      waiting_.pop_front();
    }
    if (running_.empty()) {
      throw Error(ErrorCode::resource_exhausted,
                  "generate: the cache's free pages were taken by other sequences");
    }
  }

  // One step: a token for every text under way, and what is left of the step's tokens for prompts.
  void step() {
    std::stable_partition(running_.begin(), running_.end(), [](const auto& r) { return !r->in_prompt(); });
    batch_.clear();
    std::size_t budget = static_cast<std::size_t>(engine_.options().max_step_tokens);
    bool all_greedy = true;
    for (const auto& r : running_) {
      if (budget == 0) break;
      batch_.push_back(r->next(budget));
      budget -= batch_.back().tokens.size();
      all_greedy &= batch_.back().rows == Rows::none || is_greedy(r->request);
    }
    const std::int32_t* next = all_greedy ? use_.step(batch_, StepOutput::ids).as<std::int32_t>()
                                          : draw(use_.enqueue(batch_, StepOutput::logits));
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      Running& r = *running_[i];
      if (r.in_prompt()) r.fed += batch_[i].tokens.size();
      if (batch_[i].rows == Rows::none) continue;
      if (!accept(r, *next++)) running_[i].reset();
    }
    std::erase(running_, nullptr);
  }

  // How many steps a device may take before the host looks at what they chose: none of the texts ends for its length meanwhile.
  std::int64_t steps_ahead() const {
    constexpr std::int64_t kMost = 16;
    if (engine_.dispatcher().on_host()) return 1;
    std::int64_t count = kMost;
    for (const auto& r : running_) {
      if (r->in_prompt() || !is_greedy(r->request)) return 1;
      const std::int64_t made = std::ssize(results_[r->index].tokens);
      count = std::min(count, r->request.max_new_tokens - made);
    }
    return count;
  }

  // So many steps of a token for every text under way, all greedy. What follows a text's end is dropped.
  void decode(std::int64_t count) {
    batch_.clear();
    for (const auto& r : running_) batch_.push_back(r->next(1));
    const TensorView ids = use_.decode(batch_, count);
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::size_t b = 0; b < running_.size(); ++b) {
        const std::int32_t token = ids.as<std::int32_t>()[i * ids.dim(1) + static_cast<std::int64_t>(b)];
        if (running_[b] && !accept(*running_[b], token)) running_[b].reset();
      }
    }
    std::erase(running_, nullptr);
  }

  // A token from each row of logits, on the host.
  const std::int32_t* draw(const TensorView& logits) {
    Dispatcher& d = engine_.dispatcher();
    const Launch launch{.stream = engine_.options().stream};
    std::int64_t row = 0;
    for (std::size_t i = 0; i < batch_.size(); ++i) {
      if (batch_[i].rows == Rows::none) continue;
      Running& r = *running_[i];
      if (!r.sampler)
        r.sampler = std::make_unique<Sampler>(engine_, r.request.sampling);  // greedy beside others
      r.sampler->draw(logits.slice(0, row, row + 1), drawn_.view.slice(0, row, row + 1),
                      std::ssize(results_[r.index].tokens));
      ++row;
    }
    d.copy(drawn_on_host_.data(), drawn_.view.data, static_cast<std::size_t>(row) * sizeof(std::int32_t),
           CopyDirection::to_host, launch);
    d.synchronize(launch);
    return drawn_on_host_.data();
  }

  // Whether the request goes on.
  bool accept(Running& r, std::int32_t token) {
    GenerateResult& result = results_[r.index];
    result.tokens.push_back(token);
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    if (result.tokens.size() == 1) result.seconds_to_first_token = result.seconds;
    r.last_token = token;
    if (on_token_ && !on_token_(r.index, token)) {
      result.reason = FinishReason::cancelled;
      return false;
    }
    if (std::ranges::find(r.request.stop_ids, token) != r.request.stop_ids.end()) {
      result.reason = FinishReason::stop;
      return false;
    }
    return static_cast<std::int64_t>(result.tokens.size()) < r.request.max_new_tokens;
  }

  Engine& engine_;
  EngineUse use_;  // to the end: a callback's step would overwrite the rows that are being read
  const std::span<const GenerateRequest> requests_;
  const TokenCallback& on_token_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::deque<std::size_t> waiting_;
  std::vector<std::unique_ptr<Running>> running_;
  std::vector<StepInput> batch_;
  StoredTensor drawn_;  // ids, where the logits are
  std::vector<std::int32_t> drawn_on_host_;
  std::vector<GenerateResult> results_;
};

}  // namespace

std::vector<GenerateResult> generate(Engine& engine, std::span<const GenerateRequest> requests,
                                     const TokenCallback& on_token) {
  return Scheduler(engine, requests, on_token).run();
}

}  // namespace kf
