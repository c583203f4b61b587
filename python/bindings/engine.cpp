// The model engine: configuration and weights in as dictionaries, tokens in and out as int32 arrays.
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>

#include "bindings.h"
#include "dict_fields.h"
#include "kf/engine.h"
#include "kf/error.h"
#include "kf/generate.h"

namespace kf::python {
namespace {

ModelConfig config_from(const nb::dict& values) {
  std::string architecture = "llama";
  DictFields fields("config", values);
  fields.read("architecture", architecture);
  ModelConfig c = ModelConfig::of(architecture_from_name(architecture));
  nb::dict scaling;
  fields.read("hidden_size", c.hidden_size)
      .read("intermediate_size", c.intermediate_size)
      .read("num_layers", c.num_layers)
      .read("num_heads", c.num_heads)
      .read("num_kv_heads", c.num_kv_heads)
      .read("head_dim", c.head_dim)
      .read("vocab_size", c.vocab_size)
      .read("max_positions", c.max_positions)
      .read("sliding_window", c.sliding_window)
      .read("full_layers", c.full_layers)
      .read("rms_norm_eps", c.rms_norm_eps)
      .read("norm_weight_offset", c.norm_weight_offset)
      .read("rope_theta", c.rope_theta)
      .read("rope_interleaved", c.rope_interleaved)
      .read("tie_embeddings", c.tie_embeddings)
      .read("qkv_bias", c.qkv_bias)
      .read("qk_norm", c.qk_norm)
      .read("local_rope_theta", c.local_rope_theta)
      .read("attention_scale", c.attention_scale)
      .read("attention_softcap", c.attention_softcap)
      .read("logit_softcap", c.logit_softcap)
      .read("rope_scaling", scaling)
      .finish();
  DictFields("rope_scaling", scaling)
      .read("factor", c.rope_scaling.factor)
      .read("low_freq_factor", c.rope_scaling.low_freq_factor)
      .read("high_freq_factor", c.rope_scaling.high_freq_factor)
      .read("original_max_position", c.rope_scaling.original_max_position)
      .finish();
  return c;
}

FusionPolicy policy_from(const nb::dict& values) {
  FusionPolicy p;
  DictFields("fusion", values)
      .choose("mode", p.mode, kFusionModeNames)
      .read("only", p.only)
      .read("except", p.except)
      .finish();
  return p;
}

// `baseline`: start from EngineOptions::unfused().
EngineOptions options_from(const nb::dict& values) {
  bool baseline = false;
  std::int64_t max_seq_len = 0;
  DictFields fields("options", values);
  fields.read("baseline", baseline).read("max_seq_len", max_seq_len);
  EngineOptions o = baseline ? EngineOptions::unfused(max_seq_len) : EngineOptions{};
  o.max_seq_len = max_seq_len;
  nb::dict fusion, cache;
  std::vector<std::string> families;
  std::string activation_dtype = dtype_name(o.activation_dtype), device = to_string(o.device);
  fields.read("max_batch_size", o.max_batch_size)
      .read("max_step_tokens", o.max_step_tokens)
      .read("num_threads", o.num_threads)
      .read("device", device)
      .read("activation_dtype", activation_dtype)
      .read("fusion", fusion)
      .read("families", families)
      .read("allow_fallback", o.selection.allow_fallback)
      .read("replay", o.replay)
      .read("cache", cache)
      .finish();
  o.activation_dtype = parse_dtype(activation_dtype);
  o.device = parse_device(device);
  if (!families.empty()) o.selection.families = make_selection(families, "", false).families;
  if (fusion.size()) o.fusion = policy_from(fusion);
  std::string cache_dtype = dtype_name(o.cache.dtype);
  DictFields("cache", cache)
      .read("dtype", cache_dtype)
      .read("page_size", o.cache.page_size)
      .read("num_pages", o.cache.num_pages)
      .choose("layout", o.cache.layout, kKvLayoutNames)
      .finish();
  o.cache.dtype = parse_dtype(cache_dtype);
  return o;
}

StepOutput output_from(const std::string& name) {
  if (name == "logits") return StepOutput::logits;
  if (name == "ids") return StepOutput::ids;
  throw_invalid("output: expected logits or ids, got " + name);
}

Rows rows_from(const std::string& name) {
  if (name == "none") return Rows::none;
  if (name == "last") return Rows::last;
  if (name == "all") return Rows::all;
  throw_invalid("rows: expected none, last or all, got " + name);
}

using TokenArray = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Token ids as they are: other element types would be converted, which wraps and cuts.
TokenArray tokens_from(nb::handle object) {
  TokenArray tokens;
  if (!nb::try_cast(object, tokens, false))
    throw_invalid(fmt::format("step: tokens: expected a contiguous int32 array [n], got {}",
                              nb::cast<std::string>(nb::repr(object))));
  return tokens;
}

// A copy of what `t` shows until the engine's next step; logits as f32, whatever the activations are.
Tensor copy_of(const TensorView& t) {
  const DType dtype = dtype_info(t.dtype).is_float ? DType::f32 : t.dtype;
  Tensor copy(dtype, std::span(t.shape.data(), static_cast<std::size_t>(t.rank)));
  if (t.numel() == 0) return copy;
  if (dtype == t.dtype)
    std::memcpy(copy.view().data, t.data, t.nbytes());
  else
    dequantize({.x = t, .out = copy});
  return copy;
}

template <class T>
nb::object to_numpy(Tensor tensor) {
  auto owned = std::make_unique<Tensor>(std::move(tensor));
  const TensorView t = owned->view();
  std::array<std::size_t, kMaxRank> shape{};
  for (int i = 0; i < t.rank; ++i) shape[i] = static_cast<std::size_t>(t.shape[i]);
  nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<Tensor*>(p); });
  return nb::cast(
      nb::ndarray<nb::numpy, T>(t.as<T>(), static_cast<std::size_t>(t.rank), shape.data(), owner));
}

// An engine with the arrays that its weights lie in, the verdicts that it consults, and counters where asked
// for.
class PyEngine {
 public:
  PyEngine(const nb::dict& config, const nb::dict& weights, const nb::dict& options, nb::object verdicts,
           bool count_calls, std::shared_ptr<PackCache> packs)
      : verdicts_(std::move(verdicts)), log_(true) {
    NamedTensors tensors;
    for (auto [key, value] : weights) {
      const std::string name = nb::cast<std::string>(key);
      arrays_.push_back(to_array(value, name));
      tensors.emplace(name, arrays_.back().view);
    }
    EngineOptions o = options_from(options);
    if (!verdicts_.is_none()) o.verdicts = nb::cast<VerdictStore*>(verdicts_);
    if (count_calls) o.sink = &log_;
    o.packs = std::move(packs);
    const ModelConfig c = config_from(config);
    nb::gil_scoped_release release;
    engine_.emplace(c, tensors, o);
  }

  nb::object step(const std::vector<std::tuple<SequenceId, nb::object, std::string>>& batch,
                  const std::string& output) {
    std::vector<TokenArray> tokens;
    std::vector<StepInput> inputs;
    for (const auto& [sequence, ids, rows] : batch) {
      tokens.push_back(tokens_from(ids));
      inputs.push_back({sequence, std::span(tokens.back().data(), tokens.back().size()), rows_from(rows)});
    }
    const StepOutput kind = output_from(output);
    Tensor result = unlocked([&] {
      EngineUse use(*engine_);  // until the result is copied out
      return copy_of(use.step(inputs, kind));
    });
    return kind == StepOutput::logits ? to_numpy<float>(std::move(result))
                                      : to_numpy<std::int32_t>(std::move(result));
  }

  nb::list generate(const nb::list& requests, const nb::object& on_token) {
    std::vector<GenerateRequest> parsed;
    for (nb::handle r : requests) {
      GenerateRequest q;
      SamplingOptions& s = q.sampling;
      DictFields("request", nb::cast<nb::dict>(r))
          .read("prompt", q.prompt)
          .read("max_new_tokens", q.max_new_tokens)
          .read("stop_ids", q.stop_ids)
          .read("temperature", s.temperature)
          .read("top_k", s.top_k)
          .read("top_p", s.top_p)
          .read("min_p", s.min_p)
          .read("seed", s.seed)
          .finish();
      parsed.push_back(std::move(q));
    }
    TokenCallback callback;
    if (!on_token.is_none())
      callback = [&on_token](std::size_t request, std::int32_t token) {
        nb::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        return nb::cast<bool>(nb::bool_(on_token(request, token)));
      };
    const std::vector<GenerateResult> results =
        unlocked([&] { return kf::generate(*engine_, parsed, callback); });
    static constexpr const char* kReasons[] = {"length", "stop", "cancelled"};
    return listed(results, [&](const GenerateResult& r) {
      nb::dict d;
      d["tokens"] = r.tokens;
      d["reason"] = kReasons[static_cast<int>(r.reason)];
      d["seconds_to_first_token"] = r.seconds_to_first_token;
      d["seconds"] = r.seconds;
      return d;
    });
  }

  StepShape shape_of(const std::string& output, std::int64_t num_tokens, std::int64_t batch_size,
                     std::int64_t num_rows, std::int64_t context_len) const {
    return engine_->shape_of(output_from(output), num_tokens, batch_size, num_rows, context_len);
  }
  void prepare(const StepShape& shape) {
    nb::gil_scoped_release release;
    engine_->prepare(shape);
  }

  // A step's graph before fusion beside the one that runs.
  std::string before_after_svg(const StepShape& shape) {
    nb::gil_scoped_release release;
    EngineUse use(*engine_);
    return kf::before_after_svg(use.graph(shape.output), use.fused_graph(shape).graph);
  }

  SequenceId create_sequence() {
    const EngineUse use = inner();
    return engine_->cache().create();
  }
  void release_sequence(SequenceId sequence) {
    const EngineUse use = inner();
    engine_->cache().release(sequence);
  }
  void truncate(SequenceId sequence, std::int64_t length) {
    const EngineUse use = inner();
    engine_->cache().truncate(sequence, length);
  }
  std::int64_t length(SequenceId sequence) {
    const EngineUse use = inner();
    return engine_->cache().length(sequence);
  }

  nb::dict last_step() {
    const EngineUse use = inner();
    const StepMetrics& m = engine_->last_step();
    nb::dict d;
    d["num_tokens"] = m.num_tokens;
    d["launches"] = m.launches;
    d["replayed"] = m.replayed;
    d["activation_bytes"] = m.activation_bytes;
    d["plan_seconds"] = m.plan_seconds;
    d["run_seconds"] = m.run_seconds;
    return d;
  }

  nb::list applied(const StepShape& shape) {
    const std::vector<Applied> applied = unlocked([&] {
      EngineUse use(*engine_);
      return use.fused_graph(shape).applied;
    });
    return listed(applied, [&](const Applied& a) {
      nb::dict d;
      d["rule"] = a.rule;
      d["label"] = a.label;
      d["kept"] = a.kept;
      d["reason"] = a.reason;
      return d;
    });
  }

  nb::list calls() const { return count_rows(log_); }
  nb::list distinct_calls() const { return distinct_rows(log_); }

  Engine& engine() { return *engine_; }
  CallLog& log() { return log_; }

 private:
  // For what a callback of generate() may do too, and no other thread meanwhile.
  EngineUse inner() { return EngineUse(*engine_, EngineUse::Kind::inner); }

  std::vector<Array> arrays_;
  nb::object verdicts_;
  CallLog log_;
  std::optional<Engine> engine_;
};

std::string graph_text(const Graph& g, const std::string& format) {
  if (format == "text") return g.to_text();
  if (format == "svg") return g.to_svg();
  throw_invalid("format: expected text or svg, got " + format);
}

}  // namespace

void bind_engine(nb::module_& m) {
  m.def(
      "canonical_tensor_name",
      [](const std::string& gguf_name, const std::string& architecture) {
        return canonical_tensor_name(gguf_name, architecture_from_name(architecture));
      },
      nb::arg("gguf_name"), nb::arg("architecture") = "llama",
      "The canonical name of a GGUF tensor; None: not one of the Llama family.");
  m.def(
      "expected_weights",
      [](const nb::dict& config) {
        std::map<std::string, std::vector<std::int64_t>> all;
        for (const WeightSpec& w : expected_weights(config_from(config))) all[w.name] = w.shape;
        return all;
      },
      nb::arg("config"), "Names and shapes of the weights that a model of this configuration needs.");

  nb::class_<StepShape>(m, "StepShape", "The sizes that a step is planned for.")
      .def_ro("num_tokens", &StepShape::num_tokens)
      .def_ro("batch_size", &StepShape::batch_size)
      .def_ro("num_rows", &StepShape::num_rows)
      .def_ro("max_pages", &StepShape::max_pages);

  nb::class_<PackCache>(m, "PackCache",
                        "Packed weights that engines over the same arrays share. Keep the arrays alive.")
      .def(nb::init<>())
      .def_prop_ro("bytes", &PackCache::bytes);
  nb::class_<PyEngine>(
      m, "Engine",
      "Runs a model of the Llama family over a paged cache, for one caller at a time: others\n"
      "meanwhile, and steps from within generate()'s callback, are refused.")
      .def(nb::init<const nb::dict&, const nb::dict&, const nb::dict&, nb::object, bool,
                    std::shared_ptr<PackCache>>(),
           nb::arg("config"), nb::arg("weights"), nb::arg("options") = nb::dict(),
           nb::arg("verdicts").none() = nb::none(), nb::arg("count_calls") = false,
           nb::arg("packs").none() = nb::none())
      .def("create_sequence", &PyEngine::create_sequence, "A new, empty sequence; its number.")
      .def("release_sequence", &PyEngine::release_sequence, nb::arg("sequence"),
           "Gives its pages back; the number is no longer valid.")
      .def("truncate", &PyEngine::truncate, nb::arg("sequence"), nb::arg("length"),
           "Forgets what comes after the first `length` tokens.")
      .def("length", &PyEngine::length, nb::arg("sequence"), "Its tokens in the cache.")
      .def("step", &PyEngine::step, nb::arg("batch"), nb::arg("output") = "logits",
           "Feeds [(sequence, int32 tokens, rows: none | last | all)]; returns logits [num_rows, vocab] or "
           "ids.")
      .def("generate", &PyEngine::generate, nb::arg("requests"), nb::arg("on_token").none() = nb::none())
      .def("shape_of", &PyEngine::shape_of, nb::arg("output"), nb::arg("num_tokens"), nb::arg("batch_size"),
           nb::arg("num_rows"), nb::arg("context_len"),
           "The shape of a step with these sizes: what prepare, graphs and explanations are asked for.")
      .def("prepare", &PyEngine::prepare, nb::arg("shape"),
           "Fuses, measures, packs and plans ahead of the first step of this shape.")
      .def(
          "graph",
          [](PyEngine& e, const std::string& output, const std::string& format) {
            nb::gil_scoped_release release;
            EngineUse use(e.engine());
            return graph_text(use.graph(output_from(output)), format);
          },
          nb::arg("output") = "logits", nb::arg("format") = "text", "The graph before fusion.")
      .def(
          "fused_graph",
          [](PyEngine& e, const StepShape& shape, const std::string& format) {
            nb::gil_scoped_release release;
            EngineUse use(e.engine());
            return graph_text(use.fused_graph(shape).graph, format);
          },
          nb::arg("shape"), nb::arg("format") = "text", "The graph as it runs.")
      .def("before_after_svg", &PyEngine::before_after_svg, nb::arg("shape"),
           "One drawing of the graph before fusion and as it runs, side by side.")
      .def("applied", &PyEngine::applied, nb::arg("shape"), "What became of each rule at each place.")
      .def(
          "explain",
          [](PyEngine& e, const StepShape& shape) {
            nb::gil_scoped_release release;
            return e.engine().explain(shape);
          },
          nb::arg("shape"), "The kernels of a step.")
      .def("calls", &PyEngine::calls, "Kernel calls by op and kernel, where the engine counts them.")
      .def("distinct_calls", &PyEngine::distinct_calls,
           "The same by layout: op, kernel, shapes, calls, seconds.")
      .def(
          "reset_calls", [](PyEngine& e) { e.log().reset(); }, "Forgets the calls counted so far.")
      .def_prop_ro("last_step", &PyEngine::last_step)
      .def_prop_ro("peak_activation_bytes", [](PyEngine& e) { return e.engine().peak_activation_bytes(); })
      .def_prop_ro("packed_bytes", [](PyEngine& e) { return e.engine().packed_bytes(); })
      .def_prop_ro("cache_bytes", [](PyEngine& e) { return e.engine().cache().nbytes(); })
      .def_prop_ro("max_seq_len", [](PyEngine& e) { return e.engine().options().max_seq_len; })
      .def_prop_ro("max_step_tokens", [](PyEngine& e) { return e.engine().options().max_step_tokens; });
}

}  // namespace kf::python
