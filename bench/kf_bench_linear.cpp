// kf_bench_linear: linear layers over weights of every form, and the gated FFN as one call beside its layers one by one, in
// turns within one run. Rows of each result are first checked against the reference; what is wrong is not timed. JSON.
//   kf_bench_linear weights [tokens] [in] [out] [seconds] [names] [dtype of x]
//   kf_bench_linear ffn [hidden] [intermediate] [seconds] [names] [tokens,...]
// names: some of the names below, with commas between; all: every one. A name with +int8 has x in 8 bits.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "case.h"
#include "core/quantized.h"
#include "kf/dispatch.h"
#include "kf/kf.h"
#include "kf/quantize.h"
#include "kf/sparsify.h"

namespace {

using namespace kf;

struct Form {
  const char* name;
  DType dtype;
  std::int64_t group_size = 0;
  DType scales = DType::f32;
  std::int64_t n = 0, m = 0;
  double sparsity = 0;
  InputQuantization input = InputQuantization::none;
};
constexpr auto kInt8 = InputQuantization::int8;
constexpr Form kForms[] = {{"f32", DType::f32},
                           {"bf16", DType::bf16},
                           {"i8", DType::i8},
                           {"i8+int8", DType::i8, 0, DType::f32, 0, 0, 0, kInt8},
                           {"int4-g128", DType::int4, 128, DType::f16},
                           {"int4-g128+int8", DType::int4, 128, DType::f16, 0, 0, 0, kInt8},
                           {"int4-g32", DType::int4, 32, DType::f16},
                           {"int4-g32+int8", DType::int4, 32, DType::f16, 0, 0, 0, kInt8},
                           {"q8_0", DType::q8_0},
                           {"q8_0+int8", DType::q8_0, 0, DType::f32, 0, 0, 0, kInt8},
                           {"q4_0", DType::q4_0},
                           {"q4_0+int8", DType::q4_0, 0, DType::f32, 0, 0, 0, kInt8},
                           {"q4_1", DType::q4_1},
                           {"q4_1+int8", DType::q4_1, 0, DType::f32, 0, 0, 0, kInt8},
                           {"q5_0", DType::q5_0},
                           {"q4_k", DType::q4_k},
                           {"q6_k", DType::q6_k},
                           {"fp8_e4m3", DType::fp8_e4m3},
                           {"f32-2of4", DType::f32, 0, DType::f32, 2, 4},
                           {"f32-1of4", DType::f32, 0, DType::f32, 1, 4},
                           {"f32-4of8", DType::f32, 0, DType::f32, 4, 8},
                           {"f32-sparse0.7", DType::f32, 0, DType::f32, 0, 0, 0.7},
                           {"f32-sparse0.8", DType::f32, 0, DType::f32, 0, 0, 0.8},
                           {"f32-sparse0.9", DType::f32, 0, DType::f32, 0, 0, 0.9},
                           {"bf16-2of4", DType::bf16, 0, DType::f32, 2, 4},
                           {"bf16-sparse0.8", DType::bf16, 0, DType::f32, 0, 0, 0.8},
                           {"i8-2of4", DType::i8, 0, DType::f32, 2, 4}};

struct Operand {
  TensorView weight;
  Quantization quantization;
  Sparsity sparsity;
};

Operand make_weight(cases::Maker& m, const Form& f, std::int64_t out, std::int64_t in) {
  const TensorView values = m.normal(DType::f32, {out, in}, 1.0f / std::sqrt(static_cast<float>(in)));
  Operand w;
  const auto stored = [&](DType dtype, std::initializer_list<std::int64_t> shape) -> TensorView {
    m.storage().push_back(Tensor::zeros(dtype, shape));
    return m.storage().back();
  };
  TensorView dense = values;
  if (needs_scales(f.dtype)) {
    w.quantization.group_size = f.group_size;
    w.quantization.scales =
        stored(f.scales, {out, f.group_size ? (in + f.group_size - 1) / f.group_size : 1});
    dense = stored(f.dtype, {out, in});
    quantize(values, dense, w.quantization);
  } else if (f.dtype != DType::f32) {
    dense = m.normal(f.dtype, {out, in}, 1.0f / std::sqrt(static_cast<float>(in)));
  }
  w.weight = dense;
  if (f.m == 0 && f.sparsity == 0) return w;
  SparseWeight kept = f.m ? sparsify(values, f.n, f.m) : sparsify_unstructured(values, f.sparsity);
  m.storage().push_back(kept.mask);
  if (f.m == 0) m.storage().push_back(kept.offsets);
  w.sparsity = kept.sparsity();
  w.weight = f.m ? stored(f.dtype, {out, in / f.m * f.n}) : stored(f.dtype, {kept.values.view().numel()});
  pack_values(dense, w.weight, w.sparsity);
  return w;
}

// Calls made one after another.
struct Contender {
  std::string name;
  struct Step {
    AnyParams params;
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<void> workspace;
  };
  std::vector<Step> steps;
  std::vector<double> ms;
  double error = 0, change = 0;  // against the reference; of x's rounding, in deviations of the result

  void add(Dispatcher& d, PackCache& packs, AnyParams p, const Selection& selection = {}) {
    Step s{std::move(p), {}, {}};
    s.plan = d.plan(s.params.op(), s.params.data(), selection, &packs);
    s.workspace = allocate_host(s.plan->workspace_bytes());
    steps.push_back(std::move(s));
  }
  void run(const Dispatcher& d) {
    for (Step& s : steps) s.plan->run(s.params.data(), {s.workspace.get(), d.num_threads(), nullptr});
  }
  void time(const Dispatcher& d) {
    const auto start = std::chrono::steady_clock::now();
    run(d);
    ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  double median() {
    std::nth_element(ms.begin(), ms.begin() + static_cast<std::ptrdiff_t>(ms.size() / 2), ms.end());
    return ms[ms.size() / 2];
  }
  std::string kernels() const {
    std::string names;
    for (const Step& s : steps) names += (names.empty() ? "" : ", ") + s.plan->kernel().name;
    return names;
  }
};

// Reads more than the caches hold.
class CacheFlush {
 public:
  void operator()(Dispatcher& d) {
    d.run(ActivationParams{.x = from_, .out = to_, .kind = Activation::none});
  }

 private:
  Tensor from_ = Tensor::zeros(DType::f32, {64 << 20}), to_ = Tensor::zeros(DType::f32, {64 << 20});
};

// With `flush`, which contenders over the same weights need, every one finds these in memory, as in a model of many layers.
void take_turns(Dispatcher& d, std::vector<Contender>& all, double seconds, CacheFlush* flush = nullptr) {
  for (Contender& c : all) c.run(d);
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds ||
         all[0].ms.size() < 3)
    for (Contender& c : all) {
      if (flush) (*flush)(d);
      c.time(d);
    }
}

double element(const TensorView& t, std::int64_t i) { return static_cast<double>(read_element(t, i)); }
double deviation(const TensorView& a, const TensorView& b) {
  double squares = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double by = element(a, i) - element(b, i);
    squares += by * by;
  }
  return std::sqrt(squares / static_cast<double>(std::max<std::int64_t>(a.numel(), 1)));
}
double largest(const TensorView& a, const TensorView& b) {
  double by = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) by = std::max(by, std::abs(element(a, i) - element(b, i)));
  return by;
}

std::vector<Form> forms(const std::string& names) {
  std::vector<Form> some;
  for (const Form& f : kForms)
    if (names == "all" || fmt::format(",{},", names).find(fmt::format(",{},", f.name)) != std::string::npos)
      some.push_back(f);
  return some;
}

[[noreturn]] void fail(const Contender& c) {
  fmt::print(stderr, "{}: off by {} from the reference\n", c.name, c.error);
  std::exit(1);
}

int weights(std::int64_t tokens, std::int64_t in, std::int64_t out, double seconds, const std::string& names,
            DType dtype) {
  Dispatcher& d = default_dispatcher();
  PackCache packs;
  cases::Maker m("linear");
  const TensorView x = m.normal(dtype, {tokens, in});
  std::vector<Contender> all;
  Form last{};
  LinearParams p;
  for (const Form& f : forms(names)) {
    // With x in 8 bits it is the weight before, if that is the same.
    const bool same = f.input != InputQuantization::none && last.dtype == f.dtype &&
                      last.group_size == f.group_size && !all.empty();
    if (!same) {
      const Operand w = make_weight(m, f, out, in);
      p = {.x = x, .weight = w.weight, .weight_quantization = w.quantization, .weight_sparsity = w.sparsity};
    }
    const TensorView before = p.out;
    p.input_quantization = f.input;
    p.out = m.filled(dtype, {tokens, out}, 0.0f);
    last = f;
    Contender c{f.name, {}, {}};
    c.add(d, packs, p);
    c.run(d);
    const std::int64_t checked = std::min<std::int64_t>(tokens, 2);
    LinearParams reference = p;
    reference.x = p.x.slice(0, 0, checked);
    reference.out = m.filled(dtype, {checked, out}, 0.0f);
    d.run(reference, {.families = kReference});
    c.error = largest(reference.out, p.out.slice(0, 0, checked));
    // Of 16-bit results: two units in the last place of values below 8.
    if (!(c.error < (dtype == DType::f32 ? 1e-3 : 8.0 / (dtype == DType::f16 ? 1024 : 128)))) fail(c);
    if (same) c.change = deviation(p.out, before);
    all.push_back(std::move(c));
  }
  take_turns(d, all, seconds);
  fmt::print(
      "{{\"op\": \"linear\", \"num_tokens\": {}, \"in\": {}, \"out\": {}, \"cpu\": \"{}\", \"isa\": \"{}\", "
      "\"threads\": {}, \"rounds\": {}, \"rows\": [",
      tokens, in, out, d.caps().name, d.caps().isa, d.num_threads(), all[0].ms.size());
  const double baseline = all[0].median();
  double before = baseline;
  for (std::size_t i = 0; i < all.size(); ++i) {
    Contender& c = all[i];
    const double ms = c.median();
    const Cost cost = c.steps[0].plan->cost();
    fmt::print(
        "{}\n  {{\"weight\": \"{}\", \"kernel\": \"{}\", \"median_ms\": {:.4f}, \"least_ms\": {:.4f}, "
        "\"gb_per_s\": {:.2f}, "
        "\"gflop_per_s\": {:.1f}, \"speedup_over_first\": {:.2f}, \"error\": {:.2g}",
        i ? "," : "", c.name, c.kernels(), ms, *std::min_element(c.ms.begin(), c.ms.end()),
        cost.bytes / 1e6 / ms, cost.flops / 1e6 / ms, baseline / ms, c.error);
    if (c.change > 0)
      fmt::print(", \"speedup_over_f32_activations\": {:.2f}, \"change\": {:.4f}", before / ms, c.change);
    fmt::print("}}");
    before = ms;
  }
  fmt::print("\n]}}\n");
  return 0;
}

// The FFN as one call, beside gate, up, act(gate) * up and down as calls of our own kernels, and beside the unfused composition: the
// same layers as an eager framework runs them.
void ffn(const Form& f, std::int64_t tokens, std::int64_t hidden, std::int64_t intermediate, double seconds,
         CacheFlush& flush, bool first) {
  Dispatcher& d = default_dispatcher();
  PackCache packs;
  cases::Maker m("ffn");
  const TensorView x = m.normal(DType::f32, {tokens, hidden});
  const Operand gate = make_weight(m, f, intermediate, hidden), up = make_weight(m, f, intermediate, hidden),
                down = make_weight(m, f, hidden, intermediate);
  GatedFfnParams whole{.x = x,
                       .gate_weight = gate.weight,
                       .up_weight = up.weight,
                       .down_weight = down.weight,
                       .out = m.filled(DType::f32, {tokens, hidden}, 0.0f),
                       .gate_weight_quantization = gate.quantization,
                       .up_weight_quantization = up.quantization,
                       .down_weight_quantization = down.quantization,
                       .gate_weight_sparsity = gate.sparsity,
                       .up_weight_sparsity = up.sparsity,
                       .down_weight_sparsity = down.sparsity,
                       .input_quantization = f.input};
  std::vector<Contender> all(3);
  all[0].name = "one call";
  all[0].add(d, packs, whole);
  all[2].name = "unfused";
  GatedFfnParams unfused = whole;
  unfused.out = m.filled(DType::f32, {tokens, hidden}, 0.0f);
  all[2].add(d, packs, unfused, {.families = kVanilla});
  const auto layer = [&](const TensorView& from, const Operand& w, std::int64_t out) {
    LinearParams p{.x = from,
                   .weight = w.weight,
                   .weight_quantization = w.quantization,
                   .weight_sparsity = w.sparsity,
                   .input_quantization = f.input};
    p.out = m.filled(DType::f32, {tokens, out}, 0.0f);
    all[1].add(d, packs, p);
    return p.out;
  };
  all[1].name = "layers";
  const TensorView g = layer(x, gate, intermediate), u = layer(x, up, intermediate);
  GatedActivationParams act{.gate = g, .up = u, .out = m.filled(DType::f32, {tokens, intermediate}, 0.0f)};
  all[1].add(d, packs, act);
  const TensorView out = layer(act.out, down, hidden);
  for (Contender& c : all) c.run(d);
  GatedFfnParams reference = whole;
  const std::int64_t checked = std::min<std::int64_t>(tokens, 2);
  reference.x = x.slice(0, 0, checked);
  reference.out = m.filled(DType::f32, {checked, hidden}, 0.0f);
  d.run(reference, {.families = kReference});
  all[0].error = largest(reference.out, whole.out.slice(0, 0, checked));
  all[1].error = largest(reference.out, out.slice(0, 0, checked));
  all[2].error = largest(reference.out, unfused.out.slice(0, 0, checked));
  // A hidden value in 8 bits may fall to the other side of a tie.
  for (Contender& c : all)
    if (!(c.error < (f.input == InputQuantization::none ? 1e-3 : 2e-2))) fail(c);
  take_turns(d, all, seconds, &flush);
  const double ms = all[0].median(), apart = all[1].median(), eager = all[2].median();
  fmt::print(
      "{}\n  {{\"weight\": \"{}\", \"num_tokens\": {}, \"hidden\": {}, \"intermediate\": {}, \"kernel\": "
      "\"{}\", "
      "\"one_call_ms\": {:.4f}, \"layers_ms\": {:.4f}, \"speedup\": {:.3f}, \"unfused_ms\": {:.4f}, "
      "\"speedup_over_unfused\": {:.3f}, \"rounds\": {}, \"error\": "
      "{:.2g}}}",
      first ? "" : ",", f.name, tokens, hidden, intermediate, all[0].kernels(), ms, apart, apart / ms, eager,
      eager / ms, all[0].ms.size(), all[0].error);
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
  const auto count = [&](int i, std::int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  const auto text = [&](int i, const char* otherwise) { return std::string(argc > i ? argv[i] : otherwise); };
  const std::string mode = text(1, "");
  if (mode == "weights")
    return weights(count(2, 1), count(3, 4096), count(4, 4096), number(5, 10), text(6, "all"),
                   dtype_from_name(text(7, "f32")).value());
  if (mode != "ffn") {
    fmt::print(stderr,
               "kf_bench_linear weights [tokens] [in] [out] [seconds] [names] [dtype of x]\n"
               "kf_bench_linear ffn [hidden] [intermediate] [seconds] [names] [tokens,...]\n");
    return 2;
  }
  const Dispatcher& d = default_dispatcher();
  fmt::print("{{\"op\": \"gated_ffn\", \"cpu\": \"{}\", \"isa\": \"{}\", \"threads\": {}, \"rows\": [",
             d.caps().name, d.caps().isa, d.num_threads());
  CacheFlush flush;
  bool first = true;
  for (const Form& f : forms(text(5, "f32")))
    for (std::string tokens = text(6, "1,4,16"); !tokens.empty();) {
      ffn(f, std::atoll(tokens.c_str()), count(2, 1024), count(3, 2816), number(4, 2), flush, first);
      first = false;
      const auto comma = tokens.find(',');
      tokens = comma == std::string::npos ? "" : tokens.substr(comma + 1);
    }
  fmt::print("\n]}}\n");
  return 0;
}
