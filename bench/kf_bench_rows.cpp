// kf_bench_rows: norms, softmax and activations beside a copy of the same rows, in turns within one run, per dtype: once with
// tensors far larger than the caches and once with few rows, which the nearest caches keep, so that what arithmetic alone allows is seen.
// Each result is first checked against the reference; what is wrong is not timed. JSON.
//   kf_bench_rows [rows] [columns] [rounds] [dtypes, with commas between]

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/kf.h"

namespace {

using namespace kf;

// An op over x into out, by the kernel of a default call and by the reference.
struct Call {
  std::string name, kernel;
  std::function<double()> run;  // ms
  std::function<void()> run_reference;
};

template <class Params>
Call make_call(std::string name, Params params) {
  Dispatcher& d = default_dispatcher();
  const auto plan = d.plan(params);
  const auto workspace = allocate_host(plan->workspace_bytes());
  const auto timed = [plan, params, workspace, threads = d.num_threads()] {
    const auto start = std::chrono::steady_clock::now();
    plan->run(&params, {workspace.get(), threads, nullptr});
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  };
  const auto reference = [params] {
    default_dispatcher().run(params, {.families = kReference, .allow_fallback = false, .kernel = {}});
  };
  return {std::move(name), std::string(plan->kernel().name), timed, reference};
}

// The copy comes first.
std::vector<Call> calls_over(const TensorView& x, const TensorView& weight, const TensorView& bias,
                             const TensorView& out) {
  const auto activated = [&](const char* name, Activation kind) {
    return make_call(name, ActivationParams{.x = x, .out = out, .kind = kind});
  };
  return {activated("copy", Activation::none),
          make_call("rms_norm", RmsNormParams{.x = x, .weight = weight, .out = out, .eps = 1e-5f}),
          make_call("layer_norm",
                    LayerNormParams{.x = x, .weight = weight, .bias = bias, .out = out, .eps = 1e-5f}),
          make_call("softmax", SoftmaxParams{.x = x, .out = out}),
          activated("silu", Activation::silu),
          activated("gelu_tanh", Activation::gelu_tanh),
          activated("gelu", Activation::gelu)};
}

// The largest difference from the reference, of the larger of the reference and 1.
double error_of(Call& call, const TensorView& out) {
  std::vector<double> expected(static_cast<std::size_t>(out.numel()));
  call.run_reference();
  for (std::int64_t i = 0; i < out.numel(); ++i)
    expected[static_cast<std::size_t>(i)] = cases::element(out, i);
  call.run();
  double error = 0;
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    const double e = expected[static_cast<std::size_t>(i)], difference = std::abs(cases::element(out, i) - e);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference / std::max(1.0, std::abs(e)));
  }
  return error;
}

// Medians of the rounds; each round runs every call once, `repeats` times in a row.
std::vector<double> median_ms(std::vector<Call>& calls, std::int64_t rounds, std::int64_t repeats) {
  std::vector<std::vector<double>> ms(calls.size());
  for (std::int64_t round = -1; round < rounds; ++round)  // the first one is not counted
    for (std::size_t i = 0; i < calls.size(); ++i) {
      double total = 0;
      for (std::int64_t repeat = 0; repeat < repeats; ++repeat) total += calls[i].run();
      if (round >= 0) ms[i].push_back(total / static_cast<double>(repeats));
    }
  std::vector<double> medians;
  for (auto& v : ms) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    medians.push_back(v[v.size() / 2]);
  }
  return medians;
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) {
    return argc > i ? std::max<std::int64_t>(1, std::atoll(argv[i])) : otherwise;
  };
  const std::int64_t rows = argument(1, 8192), columns = argument(2, 4096), rounds = argument(3, 25),
                     few = 64;
  const std::string wanted = fmt::format(",{},", argc > 4 ? argv[4] : "f32,bf16");
  cases::Maker m("rows");
  nlohmann::json report{{"rows", rows},
                        {"few_rows", few},
                        {"columns", columns},
                        {"rounds", rounds},
                        {"threads", default_dispatcher().num_threads()},
                        {"results", nlohmann::json::array()}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    if (wanted.find(fmt::format(",{},", dtype_name(dtype))) == std::string::npos) continue;
    const TensorView weight = m.normal(dtype, {columns}), bias = m.normal(dtype, {columns}),
                     few_x = m.normal(dtype, {few, columns}), few_out = m.filled(dtype, {few, columns}, 0.0f);
    const Tensor x(dtype, {rows, columns}), out(dtype, {rows, columns});
    const std::size_t block = few_x.nbytes();
    for (std::size_t at = 0; at < x.view().nbytes(); at += block)
      std::memcpy(static_cast<char*>(x.view().data) + at, few_x.data,
                  std::min(block, x.view().nbytes() - at));
    std::vector<Call> near = calls_over(few_x, weight, bias, few_out), far = calls_over(x, weight, bias, out);
    std::vector<double> errors;
    for (Call& call : near) {
      errors.push_back(error_of(call, few_out));
      // A result is a rounding of what differs from the reference by less: half a unit of bf16's last place is 2^-9.
      if (!(errors.back() < (dtype == DType::f32 ? 1e-5 : dtype == DType::f16 ? 2e-3 : 1.2e-2))) {
        fmt::print(stderr, "{} {}: off by {} from the reference\n", call.name, dtype_name(dtype),
                   errors.back());
        return 1;
      }
    }
    const std::vector<double> near_ms = median_ms(near, rounds, 100), far_ms = median_ms(far, rounds, 1);
    for (std::size_t i = 0; i < far.size(); ++i) {
      const auto gb_per_s = [](const TensorView& of, double ms) {
        return 2 * static_cast<double>(of.nbytes()) / 1e6 / ms;
      };
      report["results"].push_back({{"dtype", dtype_name(dtype)},
                                   {"op", far[i].name},
                                   {"kernel", far[i].kernel},
                                   {"median_ms", far_ms[i]},
                                   {"gb_per_s", gb_per_s(x, far_ms[i])},
                                   {"of_copy", far_ms[0] / far_ms[i]},
                                   {"cached_gb_per_s", gb_per_s(few_x, near_ms[i])},
                                   {"error", errors[i]}});
    }
  }
  if (report["results"].empty()) {
    fmt::print(stderr, "dtypes: expected some of f32, f16 and bf16 with commas between, got {}\n", argv[4]);
    return 2;
  }
  fmt::print("{}\n", report.dump(1));
  return 0;
}
