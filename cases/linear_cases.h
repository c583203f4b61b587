// How cases of linear, qkv_linear, gated_ffn and lm_head_argmax are put together.
//
// Tolerances. A sum of K products in f32 is off by at most gamma_K sum |x||w|, gamma_K = K u; roundings are
// as good as independent, and then sqrt(K) takes the place of K with a factor lambda for the probability
// (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019): at lambda = 6 one
// output in 10^7 may be further off. Operands are normal: x of deviation 1, w of 1/sqrt(K), so that sum
// |x||w| is 2/pi sqrt(K) and the result's deviation is 1. A value rounded to a 16-bit dtype on the way (the
// unfused forms write every intermediate) is off by u of its magnitude; passing through a layer such errors
// keep their size relative to the deviation, times lambda at most.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "case.h"
#include "core/quantized.h"
#include "core/sparse.h"
#include "graph/reflect.h"
#include "kf/ops/linear.h"
#include "kf/quantize.h"
#include "kf/sparsify.h"

namespace kf::cases::linear {

inline constexpr double kLambda = 6.0;

// Of a result of deviation 1 after `intermediates` roundings to `dtype` and reductions of these lengths.
inline Tolerance tolerance(DType dtype, std::initializer_list<std::int64_t> reductions, int intermediates) {
  const double u = unit_roundoff(dtype), u32 = unit_roundoff(DType::f32);
  Tolerance t;
  t.rtol = 2 * u;                                           // both results are rounded
  if (dtype == DType::f16) t.atol += std::ldexp(1.0, -24);  // half the spacing of denormals, twice
  for (const std::int64_t k : reductions) t.atol += kLambda * u32 * (2 / 3.14159) * static_cast<double>(k);
  t.atol += kLambda * u * intermediates;
  return t;
}

inline float weight_deviation(std::int64_t in) {
  return 1.0f / std::sqrt(static_cast<float>(std::max<std::int64_t>(in, 1)));
}

// A weight's dtype, and where that is read with scales, how these lie.
struct WeightFormat {
  DType dtype;
  std::int64_t group_size = 0;
  DType scales = DType::f32;
  bool zeros = false;
  std::int64_t rows = 1;      // of the weight to a scale; 0: all
  std::int64_t n = 0, m = 0;  // sparse n:m
  double sparsity = 0;        // unstructured

  WeightFormat(DType dtype) : dtype(dtype) {}
  WeightFormat(DType dtype, std::int64_t group_size, DType scales, bool zeros = false, std::int64_t rows = 1)
      : dtype(dtype), group_size(group_size), scales(scales), zeros(zeros), rows(rows) {}
  bool is_sparse() const { return m > 0 || sparsity > 0; }
  WeightFormat n_of_m(std::int64_t n_, std::int64_t m_) const {
    WeightFormat f = *this;
    f.n = n_, f.m = m_;
    return f;
  }
  WeightFormat sparse(double share) const {
    WeightFormat f = *this;
    f.sparsity = share;
    return f;
  }
  std::string name() const {
    return values_name() + (m > 0          ? fmt::format("-{}of{}", n, m)
                            : sparsity > 0 ? fmt::format("-sparse{:g}", sparsity)
                                           : "");
  }
  std::string values_name() const {
    if (!needs_scales(dtype)) return dtype_name(dtype);
    return fmt::format("{}-{}-{}{}{}", dtype_name(dtype),
                       group_size == 0 ? "row" : fmt::format("g{}", group_size), dtype_name(scales),
                       zeros ? "-zeros" : "",
                       rows == 1   ? ""
                       : rows == 0 ? "-tensor"
                                   : "-blocks");
  }
};

// What a weight is read with besides itself.
struct Beside {
  Quantization* quantization;
  Sparsity* sparsity;
};

// Low-bit values are rounded from normal ones, in scales of their own.
inline TensorView dense_weight(Maker& m, const WeightFormat& format, std::int64_t out, std::int64_t in,
                               float deviation, Quantization* q) {
  if (!needs_scales(format.dtype)) return m.normal(format.dtype, {out, in}, deviation);
  const TensorView values = m.normal(DType::f32, {out, in}, deviation);
  const auto parts = [](std::int64_t n, std::int64_t size) { return size == 0 ? 1 : (n + size - 1) / size; };
  q->group_size = format.group_size;
  const std::int64_t rows = parts(out, format.rows), groups = parts(in, format.group_size);
  q->scales = m.filled(format.scales, {rows, groups}, 0.0f);
  m.storage().push_back(Tensor::zeros(DType::i8, {rows, groups}));
  if (format.zeros) q->zeros = m.storage().back();
  m.storage().push_back(Tensor::zeros(format.dtype, {out, in}));
  const TensorView data = m.storage().back();
  quantize(values, data, *q);
  return data;
}

// What is kept of a sparse weight is chosen by values of its own, so that codes are kept whatever they are. These are
// larger by what is dropped: sums have the deviation of a dense weight's.
inline TensorView weight(Maker& m, const WeightFormat& format, std::int64_t out, std::int64_t in,
                         Beside beside) {
  if (!format.is_sparse()) return dense_weight(m, format, out, in, weight_deviation(in), beside.quantization);
  const double share =
      format.m > 0 ? static_cast<double>(format.n) / static_cast<double>(format.m) : 1 - format.sparsity;
  const TensorView dense = dense_weight(
      m, format, out, in, weight_deviation(in) / std::sqrt(static_cast<float>(share)), beside.quantization);
  const TensorView by = m.normal(DType::f32, {out, in});
  SparseWeight kept =
      format.m > 0 ? sparsify(by, format.n, format.m) : sparsify_unstructured(by, format.sparsity);
  m.storage().push_back(kept.mask);
  if (format.m == 0) m.storage().push_back(kept.offsets);
  *beside.sparsity = kept.sparsity();
  if (format.m > 0) {
    m.storage().push_back(Tensor::zeros(format.dtype, {out, in / format.m * format.n}));
  } else {
    const std::int64_t count = kept.values.view().numel();
    m.storage().push_back(
        Tensor::zeros(format.dtype, {format.dtype == DType::int4 ? count + count % 2 : count}));
  }
  const TensorView values = m.storage().back();
  pack_values(dense, values, *beside.sparsity);
  return values;
}
inline TensorView weight(Maker& m, DType dtype, std::int64_t out, std::int64_t in) {
  return weight(m, dtype, out, in, {nullptr, nullptr});
}

inline std::vector<float> weight_row(const LmHeadArgmaxParams& p, std::int64_t row) {
  const std::int64_t in = p.x.dim(1);
  const TensorView layout = dense_layout(p.weight, p.weight_sparsity, in);
  std::vector<float> values(static_cast<std::size_t>(in));
  if (p.weight_sparsity.present()) {
    expand_row(layout, p.weight_quantization, p.weight_sparsity, row, values.data());
  } else if (needs_scales(p.weight.dtype)) {
    dequantize_row(layout, p.weight_quantization, row, values.data());
  } else {
    for (std::int64_t k = 0; k < in; ++k)
      values[static_cast<std::size_t>(k)] = static_cast<float>(element(layout, row * in + k));
  }
  return values;
}

inline void add_norm(Maker& m, Prologue& pro, NormKind kind, DType dtype, std::int64_t in,
                     float weight_offset = 0) {
  pro.norm = kind;
  pro.norm_weight = m.normal(dtype, {in}, 0.1f, 1.0f - weight_offset);
  pro.norm_weight_offset = weight_offset;
  if (kind == NormKind::layer) pro.norm_bias = m.normal(dtype, {in}, 0.1f);
}

// What stands around the product.
struct Around {
  NormKind norm = NormKind::none;
  Activation before = Activation::none;
  bool bias = false;
  Activation after = Activation::none;
  bool residual = false;
  float norm_weight_offset = 0;  // RMSNorm

  int intermediates() const {  // of the unfused form, besides its result
    return (norm != NormKind::none) + (before != Activation::none) + (after != Activation::none) + residual;
  }
  std::string name() const {
    std::string s;
    if (norm != NormKind::none) s += fmt::format("/{}_norm", kNormKindNames[static_cast<int>(norm)]);
    if (norm_weight_offset != 0) s += "_offset";
    if (before != Activation::none) s += fmt::format("/pre_{}", kActivationNames[static_cast<int>(before)]);
    if (bias) s += "/bias";
    if (after != Activation::none) s += fmt::format("/{}", kActivationNames[static_cast<int>(after)]);
    if (residual) s += "/residual";
    return s;
  }
};

struct Shape {
  std::int64_t num_tokens, in, out;
};

inline std::string shape_name(const Shape& s) { return fmt::format("{}x{}x{}", s.num_tokens, s.in, s.out); }

inline void add_linear(CaseList& list, DType x, WeightFormat w, Shape s, Around a = {}, bool bench = false) {
  const std::string name = fmt::format("linear/{}/{}/{}{}", dtype_name(x), w.name(), shape_name(s), a.name());
  const auto make = [=](Maker& m) {
    LinearParams p;
    p.x = m.normal(x, {s.num_tokens, s.in});
    p.weight = weight(m, w, s.out, s.in, {&p.weight_quantization, &p.weight_sparsity});
    if (a.norm != NormKind::none) add_norm(m, p.prologue, a.norm, x, s.in, a.norm_weight_offset);
    p.prologue.activation = a.before;
    if (a.bias) p.bias = m.normal(x, {s.out});
    p.activation = a.after;
    if (a.residual) p.residual = m.normal(x, {s.num_tokens, s.out});
    return p;
  };
  Tolerance t = tolerance(x, {s.in}, a.intermediates());
  if (a.bias)
    t.device_atol = kLambda * unit_roundoff(x);  // a vendor's product may be rounded before its bias
  list.push_back({name, Op::linear, make, t, bench, {}});
}

inline void add_qkv(CaseList& list, DType x, std::array<WeightFormat, 3> w, std::int64_t num_tokens,
                    std::int64_t in, std::array<std::int64_t, 3> out, NormKind norm, bool bias,
                    bool bench = false) {
  const std::string name = fmt::format("qkv_linear/{}/{}-{}-{}/{}x{}x{}-{}-{}{}{}", dtype_name(x),
                                       w[0].name(), w[1].name(), w[2].name(), num_tokens, in, out[0], out[1],
                                       out[2], Around{.norm = norm}.name(), bias ? "/bias" : "");
  const auto make = [=](Maker& m) {
    QkvLinearParams p;
    p.x = m.normal(x, {num_tokens, in});
    p.q_weight = weight(m, w[0], out[0], in, {&p.q_weight_quantization, &p.q_weight_sparsity});
    p.k_weight = weight(m, w[1], out[1], in, {&p.k_weight_quantization, &p.k_weight_sparsity});
    p.v_weight = weight(m, w[2], out[2], in, {&p.v_weight_quantization, &p.v_weight_sparsity});
    if (bias) {
      p.q_bias = m.normal(x, {out[0]});
      p.k_bias = m.normal(x, {out[1]});
      p.v_bias = m.normal(x, {out[2]});
    }
    if (norm != NormKind::none) add_norm(m, p.prologue, norm, x, in);
    return p;
  };
  list.push_back({name, Op::qkv_linear, make, tolerance(x, {in}, norm != NormKind::none), bench, {}});
}

struct FfnShape {
  std::int64_t num_tokens, hidden, intermediate;
};

inline void add_ffn(CaseList& list, DType x, WeightFormat w, FfnShape s, NormKind norm, Activation activation,
                    bool residual, bool bench = false) {
  const std::string name =
      fmt::format("gated_ffn/{}/{}/{}x{}x{}{}", dtype_name(x), w.name(), s.num_tokens, s.hidden,
                  s.intermediate, Around{.norm = norm, .after = activation, .residual = residual}.name());
  const auto make = [=](Maker& m) {
    GatedFfnParams p;
    p.x = m.normal(x, {s.num_tokens, s.hidden});
    p.gate_weight =
        weight(m, w, s.intermediate, s.hidden, {&p.gate_weight_quantization, &p.gate_weight_sparsity});
    p.up_weight = weight(m, w, s.intermediate, s.hidden, {&p.up_weight_quantization, &p.up_weight_sparsity});
    p.down_weight =
        weight(m, w, s.hidden, s.intermediate, {&p.down_weight_quantization, &p.down_weight_sparsity});
    if (residual) p.residual = m.normal(x, {s.num_tokens, s.hidden});
    if (norm != NormKind::none) add_norm(m, p.prologue, norm, x, s.hidden);
    p.activation = activation;
    return p;
  };
  // Norm, gate, up, act(gate) * up, down: act(gate) * up has a deviation below 1.
  const Tolerance t =
      tolerance(x, {s.hidden, s.hidden, s.intermediate}, (norm != NormKind::none) + 3 + residual);
  list.push_back({name, Op::gated_ffn, make, t, bench, {}});
}

// Each token is a multiple of one row of the weight, which wins by far: ids must be the same whatever is
// rounded.
inline void add_argmax(CaseList& list, DType x, WeightFormat w, Shape s, NormKind norm, bool bench = false) {
  const std::string name = fmt::format("lm_head_argmax/{}/{}/{}{}", dtype_name(x), w.name(), shape_name(s),
                                       Around{.norm = norm}.name());
  const auto make = [=](Maker& m) {
    LmHeadArgmaxParams p;
    p.weight = weight(m, w, s.out, s.in, {&p.weight_quantization, &p.weight_sparsity});
    p.x = m.normal(x, {s.num_tokens, s.in}, 0.1f);
    for (std::int64_t t = 0; t < s.num_tokens; ++t) {
      const auto winner = static_cast<std::int64_t>(m.rng()() % static_cast<std::uint64_t>(s.out));
      const std::vector<float> row = weight_row(p, winner);
      for (std::int64_t k = 0; k < s.in; ++k)
        set_element(p.x, t * s.in + k,
                    element(p.x, t * s.in + k) + row[static_cast<std::size_t>(k)] / weight_deviation(s.in));
    }
    if (norm != NormKind::none) add_norm(m, p.prologue, norm, x, s.in);
    return p;
  };
  // The winning logit is about sqrt(in): errors scale with it.
  Tolerance t = tolerance(x, {s.in}, 1 + (norm != NormKind::none));
  t.atol *= 1 + std::sqrt(static_cast<double>(s.in));
  list.push_back({name, Op::lm_head_argmax, make, t, bench, {"max"}});
}

inline constexpr DType kActivationDTypes[] = {DType::f32, DType::f16, DType::bf16};
inline constexpr DType kWeightDTypes[] = {DType::f32,  DType::f16,  DType::bf16, DType::q4_0, DType::q4_1,
                                          DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k};
inline constexpr Activation kActivations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                              Activation::relu};

// The next length that is whole blocks of all these formats.
inline std::int64_t whole_blocks(std::initializer_list<DType> weights, std::int64_t n) {
  std::int64_t block = 1;
  for (const DType w : weights) block = std::max<std::int64_t>(block, dtype_info(w).block_elems);
  return (n + block - 1) / block * block;
}

// Formats of int4 and i8, with scales beside them.
std::vector<WeightFormat> integer_formats();

// In linear_weights.cpp, linear_lora.cpp and linear_int8.cpp.
void add_scaled_weights(CaseList& list);
void add_sparse_weights(CaseList& list);
void add_adapters(CaseList& list);
void add_int8_inputs(CaseList& list);

}  // namespace kf::cases::linear
