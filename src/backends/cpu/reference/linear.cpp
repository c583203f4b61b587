// The linear family in plain loops, accumulated in double.
#include "backends/cpu/reference/linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <omp.h>

#include "backends/cpu/linear/weights.h"
#include "backends/cpu/reference/scalar.h"
#include "core/quantized.h"

namespace kf::cpu::reference {
namespace {

// y = pro(x[row])
void apply_prologue(const TensorView& x, const Prologue& pro, std::int64_t row, double* y) {
  const std::int64_t in = x.dim(1);
  double sum = 0, squares = 0;
  for (std::int64_t k = 0; k < in; ++k) sum += y[k] = read(x, row * x.stride(0) + k * x.stride(1));
  const double mean = pro.norm == NormKind::layer ? sum / static_cast<double>(in) : 0.0;
  for (std::int64_t k = 0; k < in; ++k) squares += (y[k] - mean) * (y[k] - mean);
  const double deviation = std::sqrt(squares / static_cast<double>(in) + static_cast<double>(pro.eps));
  for (std::int64_t k = 0; k < in; ++k) {
    if (pro.norm != NormKind::none) {
      const double weight = pro.norm_weight_offset + read(pro.norm_weight, k * pro.norm_weight.stride(0));
      y[k] = (y[k] - mean) / deviation * weight;
      if (pro.norm_bias.present()) y[k] += read(pro.norm_bias, k * pro.norm_bias.stride(0));
    }
    y[k] = activate(pro.activation, y[k]);
  }
}

// One row of a weight of any dtype and strides.
void read_weight_row(const Weight& all, std::int64_t row, float* w) {
  const auto& [weight, quantization, sparsity] = all;
  if (sparsity.present()) return expand_row(weight, quantization, sparsity, row, w);
  if (quantization.scales.present()) return dequantize_row(weight, quantization, row, w);
  if (dtype_info(weight.dtype).is_block)
    return dequantize_blocks(weight.dtype, weight.at(row * weight.stride(0)), w, weight.dim(1));
  for (std::int64_t k = 0; k < weight.dim(1); ++k)
    w[k] = static_cast<float>(read(weight, row * weight.stride(0) + k * weight.stride(1)));
}

// The workspace: rows of activations in double, and a row of a weight for each thread.
std::size_t bytes_for(std::int64_t rows, std::int64_t features, std::int64_t longest_row, int threads) {
  return static_cast<std::size_t>(rows * features) * sizeof(double) +
         static_cast<std::size_t>(longest_row * threads) * sizeof(float);
}

// Calls emit(token, feature, y[token] . weight[feature]) for all; y is [num_tokens][in].
template <class Emit>
void for_each_dot(const double* y, std::int64_t num_tokens, const Weight& weight, float* weight_rows,
                  int num_threads, const Emit& emit) {
  const std::int64_t in = weight.layout.dim(1);
#pragma omp parallel for num_threads(num_threads)
  for (std::int64_t n = 0; n < weight.layout.dim(0); ++n) {
    float* const w = weight_rows + omp_get_thread_num() * in;
    read_weight_row(weight, n, w);
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      double sum = 0;
      for (std::int64_t k = 0; k < in; ++k) sum += y[t * in + k] * static_cast<double>(w[k]);
      emit(t, n, sum);
    }
  }
}

// Values as InputQuantization rounds them, decoded: scale * c. Its own arithmetic is f32.
void quantize(InputQuantization kind, double* y, std::int64_t n) {
  if (kind == InputQuantization::none) return;
  float largest = 0;
  bool finite = true;
  for (std::int64_t k = 0; k < n; ++k) {
    const auto v = static_cast<float>(y[k]);
    finite = finite && std::isfinite(v);
    largest = std::max(largest, std::abs(v));
  }
  float scale = largest / 127.0f;
  if (scale < std::numeric_limits<float>::min()) scale = 0;
  for (std::int64_t k = 0; k < n; ++k) {
    const float code = scale == 0 ? 0.0f : std::nearbyint(static_cast<float>(y[k]) / scale);
    y[k] = finite ? static_cast<double>(scale) * std::clamp(code, -127.0f, 127.0f)
                  : std::numeric_limits<double>::quiet_NaN();
  }
}

// What the products of a layer are made of.
template <class P>
void prepare_all(const P& p, double* y) {
  const std::int64_t in = p.x.dim(1);
  for (std::int64_t t = 0; t < p.x.dim(0); ++t, y += in) {
    apply_prologue(p.x, p.prologue, t, y);
    quantize(p.input_quantization, y, in);
  }
}

double add_bias(const TensorView& bias, std::int64_t n, double sum) {
  return bias.present() ? sum + read(bias, n * bias.stride(0)) : sum;
}

double add_residual(const TensorView& residual, std::int64_t t, std::int64_t n, double value) {
  return residual.present() ? value + read(residual, t * residual.stride(0) + n * residual.stride(1)) : value;
}

void write_at(const TensorView& out, std::int64_t t, std::int64_t n, double value) {
  write(out, t * out.stride(0) + n * out.stride(1), value);
}

}  // namespace

// The adapter of a token, in its rank's few numbers: low[token] = scale * a @ y[token]; 0 where it has none.
class LoraTerm {
 public:
  LoraTerm(const LinearParams& p, const double* y, double* low) : p_(p.lora), low_(low) {
    if (!p_.present()) return;
    const std::int64_t in = p.x.dim(1);
    rank_ = p_.a.dim(-2);
    for (std::int64_t t = 0; t < p.x.dim(0); ++t)
      for (std::int64_t r = 0; r < rank_; ++r) {
        double sum = 0;
        if (const std::int64_t adapter = adapter_of(t); adapter >= 0)
          for (std::int64_t k = 0; k < in; ++k)
            sum +=
                y[t * in + k] * read(p_.a, first(p_.a, adapter) + r * p_.a.stride(-2) + k * p_.a.stride(-1));
        low_[t * rank_ + r] = sum * static_cast<double>(p_.scale);
      }
  }
  double at(std::int64_t t, std::int64_t n) const {
    const std::int64_t adapter = adapter_of(t);
    if (!p_.present() || adapter < 0) return 0;
    double sum = 0;
    for (std::int64_t r = 0; r < rank_; ++r)
      sum +=
          low_[t * rank_ + r] * read(p_.b, first(p_.b, adapter) + n * p_.b.stride(-2) + r * p_.b.stride(-1));
    return sum;
  }

 private:
  std::int64_t adapter_of(std::int64_t t) const {
    return p_.index.present() ? p_.index.as<const std::int32_t>()[t * p_.index.stride(0)] : 0;
  }
  static std::int64_t first(const TensorView& t, std::int64_t adapter) {
    return t.rank == 3 ? adapter * t.stride(0) : 0;
  }
  const Lora& p_;
  double* low_;
  std::int64_t rank_ = 0;
};

std::size_t workspace(const LinearParams& p, const PlanContext& ctx) {
  const std::int64_t rank = p.lora.present() ? p.lora.a.dim(-2) : 0;
  return bytes_for(p.x.dim(0), p.x.dim(1) + rank, p.x.dim(1), ctx.num_threads);
}

void linear(const LinearParams& p, const RunContext& ctx) {
  auto* const y = static_cast<double*>(ctx.workspace);
  auto* const low = y + p.x.numel();
  auto* const weight_rows =
      reinterpret_cast<float*>(low + (p.lora.present() ? p.x.dim(0) * p.lora.a.dim(-2) : 0));
  const Weight weight = weight_of(p);
  prepare_all(p, y);
  const LoraTerm lora(p, y, low);
  for_each_dot(y, p.x.dim(0), weight, weight_rows, ctx.num_threads,
               [&](std::int64_t t, std::int64_t n, double sum) {
                 const double value = activate(p.activation, add_bias(p.bias, n, sum + lora.at(t, n)));
                 write_at(p.out, t, n, add_residual(p.residual, t, n, value));
               });
}

std::size_t workspace(const QkvLinearParams& p, const PlanContext& ctx) {
  return bytes_for(p.x.dim(0), p.x.dim(1), p.x.dim(1), ctx.num_threads);
}

void qkv_linear(const QkvLinearParams& p, const RunContext& ctx) {
  auto* const y = static_cast<double*>(ctx.workspace);
  auto* const weight_rows = reinterpret_cast<float*>(y + p.x.numel());
  prepare_all(p, y);
  const QkvWeights w(p);
  const auto project = [&](const Weight& weight, const TensorView& bias, const TensorView& out) {
    for_each_dot(
        y, p.x.dim(0), weight, weight_rows, ctx.num_threads,
        [&](std::int64_t t, std::int64_t n, double sum) { write_at(out, t, n, add_bias(bias, n, sum)); });
  };
  project(w.q, p.q_bias, p.q);
  project(w.k, p.k_bias, p.k);
  project(w.v, p.v_bias, p.v);
}

std::size_t workspace(const GatedFfnParams& p, const PlanContext& ctx) {
  const std::int64_t in = p.x.dim(1), intermediate = weight_rows(p.gate_weight, p.gate_weight_sparsity);
  return bytes_for(p.x.dim(0), in + intermediate, std::max(in, intermediate), ctx.num_threads);
}

void gated_ffn(const GatedFfnParams& p, const RunContext& ctx) {
  const std::int64_t num_tokens = p.x.dim(0),
                     intermediate = weight_rows(p.gate_weight, p.gate_weight_sparsity);
  const FfnWeights w(p);
  auto* const y = static_cast<double*>(ctx.workspace);
  auto* const hidden = y + p.x.numel();
  auto* const weight_rows = reinterpret_cast<float*>(hidden + num_tokens * intermediate);
  prepare_all(p, y);
  for_each_dot(y, num_tokens, w.gate, weight_rows, ctx.num_threads,
               [&](std::int64_t t, std::int64_t n, double sum) {
                 hidden[t * intermediate + n] = activate(p.activation, sum);
               });
  for_each_dot(y, num_tokens, w.up, weight_rows, ctx.num_threads,
               [&](std::int64_t t, std::int64_t n, double sum) { hidden[t * intermediate + n] *= sum; });
  for (std::int64_t t = 0; t < num_tokens; ++t)
    quantize(p.input_quantization, hidden + t * intermediate, intermediate);
  for_each_dot(hidden, num_tokens, w.down, weight_rows, ctx.num_threads,
               [&](std::int64_t t, std::int64_t n, double sum) {
                 write_at(p.out, t, n, add_residual(p.residual, t, n, sum));
               });
}

std::size_t workspace(const LmHeadArgmaxParams& p, const PlanContext&) {
  return bytes_for(p.x.dim(0), p.x.dim(1), p.x.dim(1), 1) +
         static_cast<std::size_t>(p.x.dim(0)) * sizeof(double);
}

// One thread, since the order of features decides between equals. Logits are compared as the f32 that they
// are returned as.
void lm_head_argmax(const LmHeadArgmaxParams& p, const RunContext& ctx) {
  auto* const y = static_cast<double*>(ctx.workspace);
  auto* const max = y + p.x.numel();
  auto* const weight_row = reinterpret_cast<float*>(max + p.x.dim(0));
  prepare_all(p, y);
  const Weight weight = weight_of(p);
  for_each_dot(y, p.x.dim(0), weight, weight_row, 1, [&](std::int64_t t, std::int64_t n, double sum) {
    const double logit = static_cast<float>(sum);
    const bool better = n == 0 || logit > max[t] || (std::isnan(logit) && !std::isnan(max[t]));
    if (!better) return;
    max[t] = logit;
    p.ids.as<std::int32_t>()[t * p.ids.stride(0)] = static_cast<std::int32_t>(n);
    if (p.max.present()) p.max.as<float>()[t * p.max.stride(0)] = static_cast<float>(logit);
  });
}

}  // namespace kf::cpu::reference
