// kf_bench_kv: decode attention over keys and values of every format, in turns within one run, against f32. Each result is
// first checked against attention over the same keys and values dequantized to f32; what is wrong is not timed. JSON.
//   kf_bench_kv [seqlen_k] [seconds] [formats] [num_heads] [num_kv_heads] [head_dim]
// formats: some of the names below, with commas between; all: every one.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "case.h"
#include "core/half.h"
#include "kf/dispatch.h"
#include "kf/kf.h"

namespace {

using namespace kf;

struct Format {
  const char* name;
  DType dtype;
  bool of_head = false;  // a scale a head instead of one a token and head
  std::int64_t group_size = 0;
  bool zeros = false;
  DType scales = DType::f32;
};
constexpr Format kFormats[] = {{"f32", DType::f32},
                               {"f16", DType::f16},
                               {"bf16", DType::bf16},
                               {"i8", DType::i8},
                               {"i8-head", DType::i8, true},
                               {"i8-zeros", DType::i8, false, 0, true},
                               {"fp8_e4m3", DType::fp8_e4m3},
                               {"fp8_e5m2", DType::fp8_e5m2},
                               {"int4", DType::int4},
                               {"int4-zeros", DType::int4, false, 0, true},
                               {"int4-g32-zeros-f16", DType::int4, false, 32, true, DType::f16}};

struct Call {
  std::vector<Tensor> storage;
  AttentionParams params;
  std::shared_ptr<const Plan> plan;
  std::shared_ptr<void> workspace;
  std::vector<double> ms;
  double error = 0;
};

Tensor make(Call& c, DType dtype, std::initializer_list<std::int64_t> shape) {
  c.storage.push_back(Tensor::zeros(dtype, shape));
  return c.storage.back();
}

// K or V of a format, and in f32 what it means.
TensorView convert(Call& c, const Format& f, const TensorView& x, Quantization& q,
                   const TensorView& meaning) {
  const Tensor to = make(c, f.dtype, {x.dim(0), x.dim(1), x.dim(2), x.dim(3)});
  if (!needs_scales(f.dtype)) {
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      cases::set_element(to, i, x.as<float>()[i]);
      meaning.as<float>()[i] = static_cast<float>(cases::element(to, i));
    }
    return to;
  }
  const std::int64_t groups = f.group_size ? x.dim(3) / f.group_size : 1, tokens = f.of_head ? 1 : x.dim(1);
  q.scales = make(c, f.scales, {1, tokens, x.dim(2), groups});
  if (f.zeros) q.zeros = make(c, DType::i8, {1, tokens, x.dim(2), groups});
  q.group_size = f.group_size;
  quantize_kv(x, to, q);
  dequantize_kv(to, q, meaning);
  return to;
}

double run_ms(Dispatcher& d, Call& c) {
  const RunContext ctx{c.workspace.get(), d.num_threads(), nullptr};
  const auto start = std::chrono::steady_clock::now();
  c.plan->run(&c.params, ctx);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  const std::int64_t keys = argument(1, 32768), seconds = argument(2, 10), heads = argument(4, 32),
                     kv_heads = argument(5, 8), dim = argument(6, 128);
  const std::string wanted = fmt::format(",{},", argc > 3 ? argv[3] : "all");
  std::vector<Format> formats;
  for (const Format& f : kFormats)
    if (f.dtype == DType::f32 || wanted == ",all," ||
        wanted.find(fmt::format(",{},", f.name)) != std::string::npos)
      formats.push_back(f);
  Dispatcher& d = default_dispatcher();
  cases::Maker m("kv");
  const TensorView q = m.normal(DType::f32, {1, 1, heads, dim}),
                   k = m.normal(DType::f32, {1, keys, kv_heads, dim}),
                   v = m.normal(DType::f32, {1, keys, kv_heads, dim});
  const Tensor k_means(DType::f32, {1, keys, kv_heads, dim}), v_means(DType::f32, {1, keys, kv_heads, dim});
  std::vector<Call> calls(formats.size());
  for (std::size_t i = 0; i < calls.size(); ++i) {
    Call& c = calls[i];
    c.params.q = q;
    c.params.k = convert(c, formats[i], k, c.params.k_quantization, k_means);
    c.params.v = convert(c, formats[i], v, c.params.v_quantization, v_means);
    c.params.out = make(c, DType::f32, {1, 1, heads, dim});
    c.plan = d.plan(Op::attention, &c.params);
    c.workspace = allocate_host(c.plan->workspace_bytes());
    run_ms(d, c);
    AttentionParams meant{.q = q, .k = k_means, .v = v_means, .out = make(c, DType::f32, {1, 1, heads, dim})};
    d.run(meant);
    for (std::int64_t j = 0; j < meant.out.numel(); ++j)
      c.error = std::max(
          c.error, static_cast<double>(std::abs(meant.out.as<float>()[j] - c.params.out.as<float>()[j])));
    if (!(c.error < 1e-4)) {
      fmt::print(stderr, "{}: off by {} from attention over the dequantized keys and values\n",
                 formats[i].name, c.error);
      return 1;
    }
  }
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < std::chrono::seconds(seconds) || calls[0].ms.size() < 5)
    for (Call& c : calls) c.ms.push_back(run_ms(d, c));
  fmt::print(
      "{{\"op\": \"attention\", \"kernel\": \"{}\", \"seqlen_q\": 1, \"seqlen_k\": {}, \"num_heads\": {}, "
      "\"num_kv_heads\": {}, \"head_dim\": {}, \"threads\": {}, \"rounds\": {}, \"rows\": [",
      calls[0].plan->kernel().name, keys, heads, kv_heads, dim, d.num_threads(), calls[0].ms.size());
  const double baseline = median(calls[0].ms);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const double ms = median(calls[i].ms);
    fmt::print(
        "{}\n  {{\"kv\": \"{}\", \"median_ms\": {:.3f}, \"least_ms\": {:.3f}, \"gb_per_s\": {:.2f}, "
        "\"speedup_over_f32\": {:.2f}, \"error\": {:.2g}}}",
        i ? "," : "", formats[i].name, ms, *std::min_element(calls[i].ms.begin(), calls[i].ms.end()),
        calls[i].plan->cost().bytes / 1e6 / ms, baseline / ms, calls[i].error);
  }
  fmt::print("\n]}}\n");
  return 0;
}
