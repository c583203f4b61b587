// kf_bench_model: time a token of a model with random weights, on any device: the unfused engine; the fused one; that one with
// its launches replayed; and with replayed steps that feed each other (Engine::decode). In turns; their logits are compared in the same run.
// Of the forms `rules`: the replayed form without any rule (the same kernels otherwise), with all, and for each rule that applies, with it
// alone and with all but it.
// JSON on request.
//   kf_bench_model [--shape llama-3.2-1b] [--device cuda] [--dtype bf16] [--batch 1] [--context 512] [--tokens 64]
//                  [--forms cpu,unfused,fused,replayed,decode,rules] [--fusion all|measured] [--json FILE]

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "case.h"
#include "kernel_counter.h"
#include "kf/engine.h"
#include "kf/error.h"
#include "kf/rules.h"
#include "model_shapes.h"

namespace {

using namespace kf;
using Clock = std::chrono::steady_clock;

DType dtype_of(const std::string& name) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16})
    if (name == dtype_name(t)) return t;
  throw Error(ErrorCode::invalid_argument, fmt::format("--dtype: expected f32, f16 or bf16, got {}", name));
}

struct Options {
  std::string shape = "llama-3.2-1b", device = "cuda", dtype = "bf16", json, fusion = "all",
              forms = "unfused,fused,replayed,decode";
  std::int64_t batch = 1, context = 512, tokens = 64;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    const auto text = [&](const char* n, std::string& v) {
      if (name != n || i + 1 >= argc) return false;
      v = argv[i + 1];
      return true;
    };
    const auto number = [&](const char* n, std::int64_t& v) {
      std::string digits;
      if (!text(n, digits)) return false;
      v = std::atoll(digits.c_str());
      return v > 0;
    };
    if (!(text("--shape", o.shape) || text("--device", o.device) || text("--dtype", o.dtype) ||
          text("--json", o.json) || text("--forms", o.forms) || text("--fusion", o.fusion) ||
          number("--batch", o.batch) || number("--context", o.context) || number("--tokens", o.tokens)))
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("expected --shape, --device, --dtype, --forms, --fusion or --json with a value, "
                      "or --batch, --context or --tokens with a positive number, got {}",
                      name));
  }
  return o;
}

// Weights on the device, each filled from one block of random numbers, begun at a place of its own.
class RandomWeights {
 public:
  RandomWeights(const ModelConfig& config, DType dtype, const Dispatcher& d) : d_(d), dtype_(dtype) {
    std::int64_t elements = 0;
    const std::vector<WeightSpec> specs = expected_weights(config);
    for (const WeightSpec& s : specs) elements += count(s);
    const std::size_t memory = d.caps().memory_bytes;
    bytes_ = static_cast<std::size_t>(elements) * element_bytes();
    if (memory > 0 && bytes_ > memory / 10 * 8)
      throw Error(
          ErrorCode::resource_exhausted,
          fmt::format("the weights take {:.1f} GB, the device has {:.1f}", 1e-9 * bytes_, 1e-9 * memory));
    make_block(1 / std::sqrt(static_cast<float>(config.hidden_size)));
    std::size_t begin = 0;
    for (const WeightSpec& s : specs) {
      StoredTensor t = d.make_tensor(dtype, s.shape);
      const bool is_norm = s.shape.size() == 1;
      fill(t.view, is_norm ? ones_ : block_, begin += 12345 * 64);
      named.emplace(s.name, t.view);
      stored_.push_back(std::move(t));
    }
    d.synchronize();
  }

  NamedTensors named;
  std::size_t bytes() const { return bytes_; }

 private:
  static std::int64_t count(const WeightSpec& s) {
    return std::accumulate(s.shape.begin(), s.shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  std::size_t element_bytes() const { return static_cast<std::size_t>(dtype_info(dtype_).block_bytes); }

  void make_block(float scale) {
    constexpr std::int64_t kElements = (std::int64_t{8} << 20) + 64;
    block_ = Tensor(dtype_, {kElements});
    ones_ = Tensor(dtype_, {1 << 14});
    std::mt19937 rng(1);
    std::uniform_real_distribution<float> uniform(-scale * std::sqrt(3.0f), scale * std::sqrt(3.0f));
    for (std::int64_t i = 0; i < kElements; ++i) cases::set_element(block_, i, uniform(rng));
    for (std::int64_t i = 0; i < ones_.view().numel(); ++i) cases::set_element(ones_, i, 1.0);
  }

  void fill(const TensorView& to, const TensorView& from, std::size_t begin) const {
    begin %= from.nbytes();
    for (std::size_t done = 0; done < to.nbytes(); begin = 0) {
      const std::size_t part = std::min(to.nbytes() - done, from.nbytes() - begin);
      d_.copy(to.as<std::byte>() + done, from.as<std::byte>() + begin, part, CopyDirection::to_device);
      done += part;
    }
  }

  const Dispatcher& d_;
  DType dtype_;
  std::size_t bytes_ = 0;
  Tensor block_, ones_;
  std::vector<StoredTensor> stored_;
};

// One form of the engine at work on a batch of texts.
class Form {
 public:
  Form(std::string form_name, const ModelConfig& config, const RandomWeights& weights, const Options& o)
      : name(std::move(form_name)), vocab_(config.vocab_size) {
    EngineOptions e = name == "unfused" ? EngineOptions::unfused() : EngineOptions{};
    if (name != "unfused")
      e.fusion.mode = o.fusion == "all" ? FusionPolicy::Mode::all : FusionPolicy::Mode::measured;
    if (name == kNoRule) {
      e.fusion.mode = FusionPolicy::Mode::none;
    } else if (name.starts_with(kOnly)) {
      e.fusion.only = {name.substr(kOnly.size())};
    } else if (name.starts_with(kWithout)) {
      e.fusion.except = {name.substr(kWithout.size())};
    } else if (std::ranges::find(kNames, name) == std::end(kNames)) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("--forms: expected some of {}, rules, got {}", fmt::join(kNames, ", "), name));
    }
    e.max_seq_len = o.context + 2 * kWarmUp + kRounds * o.tokens;
    e.max_batch_size = o.batch;
    e.max_step_tokens = std::max(e.max_step_tokens, o.batch);
    e.activation_dtype = e.cache.dtype = dtype_of(o.dtype);
    e.device = parse_device(name == "cpu" ? "cpu" : o.device);
    e.replay = name != "cpu" && name != "unfused" && name != "fused";
    engine.emplace(config, weights.named, e);
    prefill(o.context - 1, 0);  // plans
    engine->cache().release(sequences_.back());
    sequences_.clear();
    for (std::int64_t b = 0; b < o.batch; ++b) prefill(o.context - 1, b);
    for (std::int64_t b = 0; b < o.batch; ++b) {
      ids_.push_back(static_cast<std::int32_t>((1234 + 17 * b) % vocab_));
    }
    first_logits = values(step(StepOutput::logits));
    decode(kWarmUp);
  }

  void decode(std::int64_t count) {
    if (name == "decode") return decode_ahead(count);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto start = Clock::now();
      const TensorView out = step(StepOutput::ids);
      take(out.as<std::int32_t>(), 1);
      ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
  }

  void decode_ahead(std::int64_t count) {
    make_batch();
    const auto start = Clock::now();
    const TensorView ids = engine->decode(batch_, count);
    const double each = std::chrono::duration<double, std::milli>(Clock::now() - start).count() / count;
    take(ids.as<std::int32_t>(), count);
    ms.push_back(each);
  }

  // The ids of so many steps.
  void take(const std::int32_t* ids, std::int64_t count) {
    tokens.insert(tokens.end(), ids, ids + count * std::ssize(ids_));
    std::copy_n(tokens.end() - std::ssize(ids_), ids_.size(), ids_.begin());
  }

  // The rules that were applied to the last step.
  std::set<std::string> rules() {
    std::set<std::string> names;
    const StepShape shape = engine->shape_of(StepOutput::ids, std::ssize(ids_), std::ssize(ids_),
                                             std::ssize(ids_), engine->cache().length(sequences_.front()));
    for (const Applied& a : engine->fused_graph(shape).applied)
      if (a.kept) names.insert(a.rule);
    return names;
  }

  static constexpr const char* kNames[] = {"cpu", "unfused", "fused", "replayed", "decode"};
  static constexpr std::string_view kNoRule = "no rule", kOnly = "only ", kWithout = "without ";

  static constexpr std::int64_t kWarmUp = 8, kRounds = 5;
  const std::string name;
  std::optional<Engine> engine;
  std::vector<double> ms;  // of each step, or the mean of the steps of one decode()
  double prefill_ms = 0;   // of the last prompt
  std::vector<float> first_logits;
  std::vector<std::int32_t> tokens;  // chosen since, step by step

 private:
  void prefill(std::int64_t count, std::int64_t b) {
    sequences_.push_back(engine->cache().create());
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<std::int32_t>((i * 7919 + static_cast<std::size_t>(b) * 104729) %
                                            static_cast<std::size_t>(vocab_));
    const auto start = Clock::now();
    const auto most = static_cast<std::size_t>(engine->options().max_step_tokens);
    for (std::size_t i = 0; i < prompt.size(); i += most) {
      const StepInput in{sequences_.back(), std::span(prompt).subspan(i, std::min(most, prompt.size() - i)),
                         Rows::none};
      engine->step({&in, 1}, StepOutput::logits);
    }
    prefill_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }

  void make_batch() {
    batch_.clear();
    for (std::size_t b = 0; b < ids_.size(); ++b) batch_.push_back({sequences_[b], {&ids_[b], 1}});
  }
  TensorView step(StepOutput output) {
    make_batch();
    return engine->step(batch_, output);
  }

  static std::vector<float> values(const TensorView& t) {
    std::vector<float> v(static_cast<std::size_t>(t.numel()));
    for (std::size_t i = 0; i < v.size(); ++i)
      v[i] = static_cast<float>(cases::element(t, static_cast<std::int64_t>(i)));
    return v;
  }

  std::int64_t vocab_;
  std::vector<SequenceId> sequences_;
  std::vector<std::int32_t> ids_;
  std::vector<StepInput> batch_;
};

double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v[static_cast<std::size_t>(q * static_cast<double>(v.size() - 1))];
}

// ||a - b|| / ||b||
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

int run(const Options& o) {
  const ModelConfig config = cases::model_shape(o.shape);
  DispatcherSet dispatchers;
  const Dispatcher& d = dispatchers.on(parse_device(o.device));
  const RandomWeights weights(config, dtype_of(o.dtype), d);
  // The embedding table is read by its rows, unless the last layer reads all of it.
  const double read =
      static_cast<double>(weights.bytes()) -
      (config.tie_embeddings ? 0.0
                             : static_cast<double>(weights.named.at("model.embed_tokens.weight").nbytes()));
  fmt::print("{} in {} on {}, batch {}, context {}: {:.3f} GB of weights a step\n", o.shape, o.dtype,
             d.caps().name, o.batch, o.context, 1e-9 * read);
  std::optional<RandomWeights> on_host;
  std::vector<std::unique_ptr<Form>> forms;
  const auto add = [&](const std::string& name) {
    try {
      if (name == "cpu") on_host.emplace(config, dtype_of(o.dtype), dispatchers.on({}));
      forms.push_back(std::make_unique<Form>(name, config, name == "cpu" ? *on_host : weights, o));
    } catch (const Error& e) {
      if (e.code() == ErrorCode::invalid_argument) throw;
      fmt::print("{}: {}\n", name, e.what());
    }
  };
  for (std::size_t begin = 0; begin < o.forms.size();) {
    const std::size_t end = std::min(o.forms.find(',', begin), o.forms.size());
    const std::string name = o.forms.substr(begin, end - begin);
    begin = end + 1;
    if (name != "rules") {
      add(name);
      continue;
    }
    add(std::string(Form::kNoRule));
    add("replayed");
    if (forms.empty()) continue;
    const std::set<std::string> applied = forms.back()->rules();
    for (const Rule& r : builtin_rules()) {
      add(std::string(Form::kOnly) + r.name);
      if (forms.back()->name.ends_with(r.name) && forms.back()->rules().empty()) forms.pop_back();
      if (applied.contains(r.name)) add(std::string(Form::kWithout) + r.name);
    }
  }
  if (forms.empty()) return 1;
  for (const auto& f : forms) f->ms.clear();
  for (int round = 0; round < Form::kRounds; ++round)
    for (const auto& f : forms) f->decode(o.tokens / 2 + 1);

  // One more step of each, not timed.
  KernelCounter counter;
  std::vector<int> kernels;
  for (const auto& f : forms) {
    kernels.push_back(f->name == "cpu" ? -1 : counter.count([&] { f->decode(1); }));
    if (f->name == "cpu") f->decode(1);
    f->ms.pop_back();
  }
  if (!counter.problem().empty()) fmt::print("kernels are not counted by CUPTI: {}\n", counter.problem());

  fmt::print("{:<34} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>10} {:>12} {:>9}\n", "form", "ms/token", "10 %",
             "90 %", "tokens/s", "launches", "counted", "GB/s", "prefill ms",
             "logits  tokens as the first form's");
  nlohmann::json results = nlohmann::json::array();
  for (std::size_t i = 0; i < forms.size(); ++i) {
    const auto& f = forms[i];
    const double ms = quantile(f->ms, 0.5);
    const StepMetrics& m = f->engine->last_step();
    const double apart = distance(f->first_logits, forms.front()->first_logits);
    const std::vector<std::int32_t>& first = forms.front()->tokens;
    const auto same = std::ranges::mismatch(f->tokens, first).in1 - f->tokens.begin();
    fmt::print("{:<34} {:>9.3f} {:>9.3f} {:>9.3f} {:>10.0f} {:>9} {:>9} {:>10.0f} {:>12.2f} {:>9.2g}{}\n",
               f->name, ms, quantile(f->ms, 0.1), quantile(f->ms, 0.9),
               static_cast<double>(o.batch) / ms * 1e3, m.launches, kernels[i], read / ms * 1e-6,
               f->prefill_ms, apart, fmt::format("  {} of {}", same, f->tokens.size()));
    results.push_back({{"form", f->name},
                       {"ms_per_step", ms},
                       {"ms_per_step_10", quantile(f->ms, 0.1)},
                       {"ms_per_step_90", quantile(f->ms, 0.9)},
                       {"steps", f->ms.size()},
                       {"launches", m.launches},
                       {"kernels_counted_by_cupti", kernels[i]},
                       {"replayed", m.replayed},
                       {"prefill_ms", f->prefill_ms},
                       {"activation_bytes", f->engine->peak_activation_bytes()},
                       {"logits_from_the_first_form", apart},
                       {"tokens", f->tokens.size()},
                       {"tokens_as_the_first_form", same}});
  }
  if (!o.json.empty())
    std::ofstream(o.json) << nlohmann::json{{"device", d.caps().name},
                                            {"shape", o.shape},
                                            {"dtype", o.dtype},
                                            {"batch", o.batch},
                                            {"context", o.context},
                                            {"fusion", o.fusion},
                                            {"weight_bytes_a_step", read},
                                            {"forms", results}}
                                 .dump(1)
                          << '\n';
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "kf_bench_model: {}\n", e.what());
    return 2;
  }
}
