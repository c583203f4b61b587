// Cases of linear, qkv_linear, gated_ffn and lm_head_argmax.
//
// Tolerances. A sum of K products in f32 is off by at most gamma_K sum |x||w|, gamma_K = K u; roundings are
// as good as independent, and then sqrt(K) takes the place of K with a factor lambda for the probability
// (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019): at lambda = 6 one
// output in 10^7 may be further off. Operands are normal: x of deviation 1, w of 1/sqrt(K), so that sum
// |x||w| is 2/pi sqrt(K) and the result's deviation is 1. A value rounded to a 16-bit dtype on the way (the
// unfused forms write every intermediate) is off by u of its magnitude; passing through a layer such errors
// keep their size relative to the deviation, times lambda at most.
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

namespace kf::cases {
namespace {

constexpr double kLambda = 6.0;

// Of a result of deviation 1 after `intermediates` roundings to `dtype` and reductions of these lengths.
Tolerance tolerance(DType dtype, std::initializer_list<std::int64_t> reductions, int intermediates) {
  const double u = unit_roundoff(dtype), u32 = unit_roundoff(DType::f32);
  Tolerance t;
  t.rtol = 2 * u;                                           // both results are rounded
  if (dtype == DType::f16) t.atol += std::ldexp(1.0, -24);  // half the spacing of denormals, twice
  for (const std::int64_t k : reductions) t.atol += kLambda * u32 * (2 / 3.14159) * static_cast<double>(k);
  t.atol += kLambda * u * intermediates;
  return t;
}

float weight_deviation(std::int64_t in) {
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
TensorView dense_weight(Maker& m, const WeightFormat& format, std::int64_t out, std::int64_t in,
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
TensorView weight(Maker& m, const WeightFormat& format, std::int64_t out, std::int64_t in, Beside beside) {
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
TensorView weight(Maker& m, DType dtype, std::int64_t out, std::int64_t in) {
  return weight(m, dtype, out, in, {nullptr, nullptr});
}

std::vector<float> weight_row(const LmHeadArgmaxParams& p, std::int64_t row) {
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

void add_norm(Maker& m, Prologue& pro, NormKind kind, DType dtype, std::int64_t in, float weight_offset = 0) {
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

std::string shape_name(const Shape& s) { return fmt::format("{}x{}x{}", s.num_tokens, s.in, s.out); }

void add_linear(CaseList& list, DType x, WeightFormat w, Shape s, Around a = {}, bool bench = false) {
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
  list.push_back({name, Op::linear, make, tolerance(x, {s.in}, a.intermediates()), bench, {}});
}

void add_qkv(CaseList& list, DType x, std::array<WeightFormat, 3> w, std::int64_t num_tokens, std::int64_t in,
             std::array<std::int64_t, 3> out, NormKind norm, bool bias, bool bench = false) {
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

void add_ffn(CaseList& list, DType x, WeightFormat w, FfnShape s, NormKind norm, Activation activation,
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
void add_argmax(CaseList& list, DType x, WeightFormat w, Shape s, NormKind norm, bool bench = false) {
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

constexpr DType kActivationDTypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr DType kWeightDTypes[] = {DType::f32,  DType::f16,  DType::bf16, DType::q4_0, DType::q4_1,
                                   DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k};
constexpr Activation kActivations[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh,
                                       Activation::relu};

// The next length that is whole blocks of all these formats.
std::int64_t whole_blocks(std::initializer_list<DType> weights, std::int64_t n) {
  std::int64_t block = 1;
  for (const DType w : weights) block = std::max<std::int64_t>(block, dtype_info(w).block_elems);
  return (n + block - 1) / block * block;
}

// Every dtype with every number of tokens; neither features nor the reduction are a multiple of a vector, and
// the reduction is longer than one block where 640 or 290.
void add_dtypes_and_sizes(CaseList& list) {
  for (const DType x : kActivationDTypes)
    for (const DType w : kWeightDTypes) {
      const std::int64_t in = dtype_info(w).is_block ? whole_blocks({w}, 96) : 75;
      for (const std::int64_t num_tokens : {0, 1, 2, 3, 7, 17, 64, 129})
        add_linear(list, x, w, {num_tokens, in, 97});
      add_linear(list, x, w, {19, dtype_info(w).is_block ? whole_blocks({w}, 640) : 290, 45});
      add_linear(list, x, w, {5, in, 1});
      add_linear(list, x, w, {5, in, 0});
    }
  add_linear(list, DType::f32, DType::f32, {9, 1, 33});
  add_linear(list, DType::f32, DType::f32, {9, 0, 33}, {.bias = true});
  add_linear(list, DType::f32, DType::f32, {700, 40, 20});  // more than one pass
}

void add_surroundings(CaseList& list) {
  for (const DType x : kActivationDTypes)
    for (const DType w : {x, DType::q4_1, DType::q6_k}) {
      for (const std::int64_t num_tokens : {1, 3, 37}) {
        const Shape s{num_tokens, whole_blocks({w}, 320), 71};
        add_linear(list, x, w, s, {.bias = true});
        add_linear(list, x, w, s, {.norm = NormKind::rms});
        if (x == w)
          add_linear(list, x, w, s, {.norm = NormKind::rms, .residual = true, .norm_weight_offset = 1});
        add_linear(list, x, w, s, {.norm = NormKind::layer, .bias = true});
        add_linear(list, x, w, s, {.residual = true});
        add_linear(list, x, w, s,
                   {.norm = NormKind::rms, .bias = true, .after = Activation::silu, .residual = true});
        for (const Activation a : kActivations) {
          add_linear(list, x, w, s, {.before = a});
          add_linear(list, x, w, s, {.bias = true, .after = a});
        }
      }
    }
}

void add_composites(CaseList& list) {
  for (const DType x : kActivationDTypes) {
    for (const std::int64_t num_tokens : {0, 1, 3, 65}) {
      add_qkv(list, x, {x, x, x}, num_tokens, 75, {54, 27, 27}, NormKind::rms, true);
      add_qkv(list, x, {DType::q4_1, DType::q4_0, DType::q8_0}, num_tokens, 96, {96, 32, 33}, NormKind::rms,
              false);
      add_qkv(list, x, {x, DType::q8_0, x}, num_tokens, 320, {64, 16, 16}, NormKind::layer, false);
      for (const Activation a : kActivations)
        add_ffn(list, x, x, {num_tokens, 75, 133}, NormKind::rms, a, true);
      add_ffn(list, x, DType::q4_1, {num_tokens, 96, 320}, NormKind::none, Activation::silu, false);
      add_ffn(list, x, DType::q8_0, {num_tokens, 320, 96}, NormKind::layer, Activation::gelu, true);
      add_ffn(list, x, DType::q4_0, {num_tokens, 64, 64}, NormKind::rms, Activation::silu, true);
      add_ffn(list, x, DType::q4_k, {num_tokens, 256, 512}, NormKind::rms, Activation::silu, true);
      add_qkv(list, x, {DType::q4_k, DType::q4_k, DType::q6_k}, num_tokens, 512, {96, 32, 33}, NormKind::rms,
              false);
      for (const DType w : kWeightDTypes)
        add_argmax(list, x, w, {num_tokens, whole_blocks({w}, 128), 203}, NormKind::rms);
      add_argmax(list, x, x, {num_tokens, 33, 1}, NormKind::none);
    }
  }
}

// Rows of x, residual and results further apart than they are long; weights as columns of x @ W, and with
// both strides.
void add_strides(CaseList& list) {
  for (const DType dtype : kActivationDTypes)
    for (const std::int64_t num_tokens : {1, 3, 23}) {
      const std::int64_t in = 75, out = 53;
      const auto add = [&](const char* what, auto arrange) {
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(dtype, {num_tokens, in});
          p.weight = weight(m, dtype, out, in);
          arrange(m, p);
          return p;
        };
        list.push_back({fmt::format("linear/{}/{}/{}", dtype_name(dtype), what, num_tokens),
                        Op::linear,
                        make,
                        tolerance(dtype, {in}, 2),
                        false,
                        {}});
      };
      add("strided_rows", [=](Maker& m, LinearParams& p) {
        p.x = m.strided(p.x, 5);
        p.weight = m.strided(p.weight, 3);
        p.residual = m.strided(m.normal(dtype, {num_tokens, out}), 7);
        p.out = m.strided(m.filled(dtype, {num_tokens, out}, 0), 9);
      });
      add("in_out_weight", [=](Maker& m, LinearParams& p) {
        p.weight = m.normal(dtype, {in, out}, weight_deviation(in)).transpose(0, 1);
      });
      add("in_out_weight_strided", [=](Maker& m, LinearParams& p) {
        p.weight = m.strided(m.normal(dtype, {in, out}, weight_deviation(in)), 11).transpose(0, 1);
        p.bias = m.normal(DType::f32, {out});
      });
      add("every_other_column", [=](Maker& m, LinearParams& p) {
        p.weight = m.normal(dtype, {out, 2 * in}, weight_deviation(in));
        p.weight.shape[1] = in;
        p.weight.strides[1] = 2;
      });
    }
}

// Infinities, NaN, the largest f16 and denormals, each in a row of its own and together.
void add_hostile_values(CaseList& list) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const DType x : kActivationDTypes)
    for (const DType w : {x, DType::q4_0, DType::q4_1, DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k})
      for (const std::int64_t num_tokens : {8, 20}) {
        const std::int64_t in = whole_blocks({w}, 320), out = 40;
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(x, {num_tokens, in});
          p.weight = weight(m, w, out, in);
          set_element(p.x, 0 * in + 7, kInf);
          set_element(p.x, 1 * in + 300, -kInf);
          set_element(p.x, 2 * in + 0, kNan);
          set_element(p.x, 3 * in + 5, kInf);
          set_element(p.x, 3 * in + 250, -kInf);
          for (std::int64_t k = 0; k < in; ++k)
            set_element(p.x, 4 * in + k, 1e-7 * static_cast<double>(k % 5));
          return p;
        };
        list.push_back({fmt::format("linear/{}/{}/hostile/{}", dtype_name(x), dtype_name(w), num_tokens),
                        Op::linear,
                        make,
                        tolerance(x, {in}, 0),
                        false,
                        {}});
      }
  for (const DType x : kActivationDTypes)
    for (const std::int64_t num_tokens : {2, 20}) {
      // The largest f16 through a weight that brings it down again; f16 weights that are denormals.
      const auto make = [=](Maker& m) {
        LinearParams p;
        p.x = m.filled(x, {num_tokens, 64}, 65504.0f);
        p.weight = m.normal(DType::f16, {33, 64}, 1e-6f);
        return p;
      };
      Tolerance t = tolerance(x, {64}, 0);  // deviation 65504 * 1e-6 * 8, and the sum of magnitudes likewise
      list.push_back({fmt::format("linear/{}/f16/denormal_weights/{}", dtype_name(x), num_tokens),
                      Op::linear,
                      make,
                      t,
                      false,
                      {}});
      // Equal logits: the lowest index; a NaN: before all.
      const auto make_ties = [=](Maker& m) {
        LmHeadArgmaxParams p;
        p.x = m.filled(x, {num_tokens, 32}, 1.0f);
        p.weight = m.filled(DType::f32, {200, 32}, 0.25f);
        for (std::int64_t n = 0; n < 200; ++n)
          if (n % 37 == 36) set_element(p.weight, n * 32, 2.0);
        set_element(p.x, 1 * 32 + 3, kNan);
        for (std::int64_t k = 0; k < 32; ++k) set_element(p.x, k, 0.0);
        return p;
      };
      list.push_back({fmt::format("lm_head_argmax/{}/ties/{}", dtype_name(x), num_tokens),
                      Op::lm_head_argmax,
                      make_ties,
                      {},
                      false,
                      {"max"}});
    }
}

// SmolLM2-135M's layers, and those of a model of 4096.
void add_benchmarks(CaseList& list) {
  constexpr DType kBenchWeights[] = {DType::f32, DType::bf16, DType::q4_1, DType::q8_0};
  for (const DType w : kBenchWeights) {
    for (const std::int64_t num_tokens : {128, 512, 2048}) {
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 1536, 576}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {.residual = true}, true);
      add_qkv(list, DType::f32, {w, w, w}, num_tokens, 576, {576, 192, 192}, NormKind::rms, false, true);
      add_ffn(list, DType::f32, w, {num_tokens, 576, 1536}, NormKind::rms, Activation::silu, true, true);
    }
    add_argmax(list, DType::f32, w, {128, 576, 49152}, NormKind::rms, true);
  }
  for (const DType w :
       {DType::f32, DType::bf16, DType::q4_1, DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k}) {
    for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
      add_linear(list, DType::f32, w, {num_tokens, 4096, 4096}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 4096, 14336}, {}, true);
    }
    add_linear(list, DType::f32, w, {512, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  }
}

// Decoding: weights large enough that threads share them, an odd number of blocks, rows that are slices of
// longer ones, an element too large for arithmetic on undecoded nibbles; and SmolLM2-135M's layers for a few
// sequences.
void add_few_tokens(CaseList& list) {
  for (const DType w : kWeightDTypes)
    for (const std::int64_t num_tokens : {1, 2, 3, 4, 5, 8, 15, 16}) {
      const std::int64_t in = whole_blocks({w}, 288), block = std::max(dtype_info(w).block_elems, 32);
      add_linear(list, DType::f32, w, {num_tokens, whole_blocks({w}, 608), 203},
                 {.norm = NormKind::rms, .residual = true});
      add_ffn(list, DType::f32, w, {num_tokens, in, whole_blocks({w}, 416)}, NormKind::rms, Activation::silu,
              true);
      add_qkv(list, DType::f32, {w, DType::q8_0, DType::q4_1}, num_tokens, in, {192, 96, 97}, NormKind::rms,
              true);
      add_argmax(list, DType::f32, w, {num_tokens, in, 1009}, NormKind::rms);
      const auto make = [=](Maker& m) {
        LinearParams p;
        p.x = m.normal(DType::f32, {num_tokens, in});
        set_element(p.x, 100, 1e32);
        p.weight = weight(m, w, 203, in + 2 * block).slice(1, block, in + block);
        return p;
      };
      const Tolerance t = tolerance(DType::f32, {in}, 0);
      list.push_back({fmt::format("linear/f32/{}/sliced_rows/{}", dtype_name(w), num_tokens),
                      Op::linear,
                      make,
                      {t.rtol, t.atol},
                      false,
                      {}});
      const auto make_large = [=](Maker& m) {
        LinearParams p;
        p.x = m.filled(DType::f32, {num_tokens, whole_blocks({w}, 64)}, 0.0f);
        set_element(p.x, 40, 1e38);
        p.weight = weight(m, w, 33, whole_blocks({w}, 64));
        return p;
      };
      list.push_back({fmt::format("linear/f32/{}/large_element/{}", dtype_name(w), num_tokens),
                      Op::linear,
                      make_large,
                      {1e-5, 1e32},
                      false,
                      {}});
    }
  for (const DType w : {DType::f32, DType::bf16, DType::q4_1, DType::q8_0})
    for (const std::int64_t num_tokens : {1, 2, 4, 8, 16}) {
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {.residual = true}, true);
      add_qkv(list, DType::f32, {w, w, w}, num_tokens, 576, {576, 192, 192}, NormKind::rms, false, true);
      add_ffn(list, DType::f32, w, {num_tokens, 576, 1536}, NormKind::rms, Activation::silu, true, true);
      add_argmax(list, DType::f32, w, {num_tokens, 576, 49152}, NormKind::rms, true);
    }
}

// Weights with scales beside them: every way in which these may lie, every number of tokens, rows that end within a
// byte's, a step's and a group's elements, x with an element too large for arithmetic on undecoded codes.
std::vector<WeightFormat> scaled_formats() {
  return {{DType::int4, 0, DType::f32},
          {DType::int4, 0, DType::f16, true},
          {DType::int4, 32, DType::f32},
          {DType::int4, 32, DType::bf16, true},
          {DType::int4, 64, DType::bf16},
          {DType::int4, 64, DType::f32, true},
          {DType::int4, 128, DType::f16},
          {DType::int4, 128, DType::f16, true},
          {DType::i8, 0, DType::f32},
          {DType::i8, 0, DType::bf16, true},
          {DType::i8, 128, DType::f16},
          {DType::fp8_e4m3, 0, DType::f32},
          {DType::fp8_e4m3, 0, DType::f32, false, 0},
          {DType::fp8_e4m3, 128, DType::f32, false, 128},
          {DType::fp8_e4m3, 128, DType::bf16},
          {DType::fp8_e5m2, 0, DType::f16},
          {DType::fp8_e5m2, 0, DType::f32, false, 0},
          {DType::fp8_e5m2, 128, DType::bf16, false, 128}};
}

void add_scaled_weights(CaseList& list) {
  for (const WeightFormat& w : scaled_formats()) {
    const std::int64_t odd = w.dtype == DType::int4 ? 74 : 75;
    for (const std::int64_t num_tokens : {0, 1, 2, 3, 4, 7, 16, 17, 64, 129}) {
      add_linear(list, DType::f32, w, {num_tokens, odd, 97});
      add_linear(list, DType::f32, w, {num_tokens, 608, 203}, {.norm = NormKind::rms, .residual = true});
    }
    for (const DType x : {DType::f16, DType::bf16})
      for (const std::int64_t num_tokens : {1, 19})
        add_linear(list, x, w, {num_tokens, 9 * odd, 45}, {.bias = true});
    for (const std::int64_t num_tokens : {1, 3, 37}) {
      add_ffn(list, DType::f32, w, {num_tokens, odd, 320}, NormKind::rms, Activation::silu, true);
      add_ffn(list, DType::bf16, w, {num_tokens, 288, 416}, NormKind::layer, Activation::gelu, false);
      add_qkv(list, DType::f32, {w, DType::q4_1, {DType::int4, 32, DType::f32, true}}, num_tokens, 288,
              {192, 96, 97}, NormKind::rms, true);
      add_qkv(list, DType::f32, {w, w, w}, num_tokens, odd, {150, 30, 33}, NormKind::layer, false);
      add_argmax(list, DType::f32, w, {num_tokens, 288, 1009}, NormKind::rms);
    }
    add_linear(list, DType::f32, w, {5, 320, 1});
    add_linear(list, DType::f32, w, {5, 320, 0});
    add_linear(list, DType::f32, w, {1, 9000, 20});  // more groups than scales are held at a time
    for (const std::int64_t num_tokens : {2, 20}) {
      const auto add = [&](const char* what, Tolerance t, auto arrange) {
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(DType::f32, {num_tokens, 288});
          p.weight = weight(m, w, 61, 288, {&p.weight_quantization, &p.weight_sparsity});
          arrange(m, p);
          return p;
        };
        list.push_back(
            {fmt::format("linear/f32/{}/{}/{}", w.name(), what, num_tokens), Op::linear, make, t, false, {}});
      };
      const Tolerance t = tolerance(DType::f32, {288}, 0);
      add("outsized", {t.rtol, 1e25}, [](Maker&, LinearParams& p) { set_element(p.x, 100, 1e32); });
      add("infinity", t, [](Maker&, LinearParams& p) {
        set_element(p.x, 7, std::numeric_limits<double>::infinity());
        set_element(p.x, 288 + 3, std::numeric_limits<double>::quiet_NaN());
      });
      // Rows of the weight and of its scales that lie apart: every other one.
      add("rows_apart", t, [](Maker&, LinearParams& p) {
        const auto every_other = [](TensorView& rows) {
          if (!rows.present() || rows.dim(0) == 1) return;
          rows.shape[0] = (rows.shape[0] + 1) / 2;
          rows.strides[0] *= 2;
        };
        if (p.weight_quantization.scales.dim(0) != p.weight.dim(0)) return;
        every_other(p.weight);
        every_other(p.weight_quantization.scales);
        every_other(p.weight_quantization.zeros);
      });
    }
  }
  const WeightFormat kBench[] = {{DType::int4, 128, DType::f16},
                                 {DType::int4, 128, DType::f16, true},
                                 {DType::int4, 32, DType::f16},
                                 {DType::i8, 0, DType::f32},
                                 {DType::fp8_e4m3, 128, DType::f32, false, 128},
                                 {DType::fp8_e5m2, 0, DType::f32}};
  for (const WeightFormat& w : kBench)
    for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
      add_linear(list, DType::f32, w, {num_tokens, 4096, 4096}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 4096, 14336}, {}, true);
    }
}

// Sparse weights: patterns, dtypes of values, numbers of tokens; rows that end within a mask's word, weights that are all
// but empty, rows without a value, groups of scales that are parts of a word's columns.
void add_sparse_weights(CaseList& list) {
  const auto patterns = [](const WeightFormat& values) {
    return std::vector<WeightFormat>{values.n_of_m(2, 4),   values.n_of_m(1, 4), values.n_of_m(4, 8),
                                     values.n_of_m(31, 32), values.sparse(0.8),  values.sparse(0.997),
                                     values.sparse(0.1)};
  };
  for (const WeightFormat& w : patterns(DType::f32)) {
    const std::int64_t odd = w.m == 0 ? 75 : w.m == 32 ? 96 : 88;
    for (const std::int64_t num_tokens : {0, 1, 2, 3, 4, 7, 17, 64}) {
      add_linear(list, DType::f32, w, {num_tokens, odd, 97});
      add_linear(list, DType::f32, w, {num_tokens, 1280, 103}, {.norm = NormKind::rms, .residual = true});
    }
    for (const std::int64_t num_tokens : {1, 3, 37}) {
      add_ffn(list, DType::f32, w, {num_tokens, odd, 320}, NormKind::rms, Activation::silu, true);
      add_qkv(list, DType::f32, {w, DType::q4_1, WeightFormat(DType::f32).sparse(0.7)}, num_tokens, 288,
              {192, 96, 97}, NormKind::rms, true);
      add_argmax(list, DType::f32, w, {num_tokens, 288, 509}, NormKind::rms);
    }
    add_linear(list, DType::f32, w, {5, 320, 1});
    add_linear(list, DType::f32, w, {5, 320, 0});
  }
  for (const DType values : {DType::f16, DType::bf16})
    for (const WeightFormat& w : patterns(values))
      for (const std::int64_t num_tokens : {1, 3, 19})
        add_linear(list, values, w, {num_tokens, w.m == 0 ? 75 : 96, 45},
                   {.bias = true, .after = Activation::silu});
  const WeightFormat kScaled[] = {{DType::int4, 0, DType::f16, true},
                                  {DType::int4, 32, DType::bf16, true},
                                  {DType::int4, 128, DType::f16},
                                  {DType::i8, 0, DType::bf16, true},
                                  {DType::i8, 128, DType::f16},
                                  {DType::fp8_e4m3, 128, DType::f32, false, 128},
                                  {DType::fp8_e5m2, 0, DType::f32, false, 0}};
  for (const WeightFormat& scaled : kScaled)
    for (const WeightFormat& w : {scaled.n_of_m(2, 4), scaled.sparse(0.75)}) {
      for (const std::int64_t num_tokens : {1, 3, 37}) {
        add_linear(list, DType::f32, w, {num_tokens, 608, 103}, {.norm = NormKind::rms, .residual = true});
        add_linear(list, DType::bf16, w, {num_tokens, 72, 45});
        add_ffn(list, DType::f32, w, {num_tokens, 96, 160}, NormKind::layer, Activation::gelu, false);
      }
      add_linear(list, DType::f32, w, {2, 8960, 6});  // more groups than scales are held at a time
    }
  for (const WeightFormat& w : {WeightFormat(DType::f32).n_of_m(2, 4), WeightFormat(DType::f32).sparse(0.8)})
    for (const std::int64_t num_tokens : {4, 20}) {
      const auto make = [=](Maker& m) {
        LinearParams p;
        p.x = m.normal(DType::f32, {num_tokens, 320});
        p.weight = weight(m, w, 61, 320, {&p.weight_quantization, &p.weight_sparsity});
        set_element(p.x, 7, std::numeric_limits<double>::infinity());
        set_element(p.x, 320 + 3, std::numeric_limits<double>::quiet_NaN());
        set_element(p.weight, 11, std::numeric_limits<double>::infinity());
        if (w.m == 0) return p;
        // Every other row.
        p.weight.shape[0] = p.weight_sparsity.mask.shape[0] = 31;
        p.weight.strides[0] *= 2;
        p.weight_sparsity.mask.strides[0] *= 2;
        return p;
      };
      list.push_back({fmt::format("linear/f32/{}/hostile/{}", w.name(), num_tokens),
                      Op::linear,
                      make,
                      tolerance(DType::f32, {320}, 0),
                      false,
                      {}});
    }
  for (const WeightFormat& w : {WeightFormat(DType::f32), WeightFormat(DType::f32).n_of_m(2, 4),
                                WeightFormat(DType::f32).n_of_m(1, 4), WeightFormat(DType::f32).n_of_m(4, 8),
                                WeightFormat(DType::f32).sparse(0.7), WeightFormat(DType::f32).sparse(0.8),
                                WeightFormat(DType::f32).sparse(0.9), WeightFormat(DType::bf16).n_of_m(2, 4),
                                WeightFormat(DType::i8, 0, DType::f32).n_of_m(2, 4),
                                WeightFormat(DType::int4, 128, DType::f16).n_of_m(2, 4)})
    for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
      if (w.is_sparse()) add_linear(list, DType::f32, w, {num_tokens, 4096, 4096}, {}, true);
      add_ffn(list, DType::f32, w, {num_tokens, 2048, 5632}, NormKind::rms, Activation::silu, true, true);
    }
}

// Low-rank adapters: one for the call or one of several for each token (-1: none), ranks that are and are not whole
// vectors, more of them than a block has, around every other part of the layer.
void add_adapters(CaseList& list) {
  struct Adapters {
    std::int64_t rank, count;  // count 0: one for the call
    DType dtype;
  };
  const auto add = [&](DType x, WeightFormat w, Shape s, Adapters l, Around a = {}, bool bench = false) {
    const std::string name =
        fmt::format("linear/{}/{}/{}{}/lora-{}-r{}{}", dtype_name(x), w.name(), shape_name(s), a.name(),
                    dtype_name(l.dtype), l.rank, l.count == 0 ? "" : fmt::format("-of{}", l.count));
    const auto make = [=](Maker& m) {
      LinearParams p;
      p.x = m.normal(x, {s.num_tokens, s.in});
      p.weight = weight(m, w, s.out, s.in, {&p.weight_quantization, &p.weight_sparsity});
      if (a.norm != NormKind::none) add_norm(m, p.prologue, a.norm, x, s.in, a.norm_weight_offset);
      if (a.bias) p.bias = m.normal(x, {s.out});
      p.activation = a.after;
      if (a.residual) p.residual = m.normal(x, {s.num_tokens, s.out});
      // x @ a^T of deviation 1, and with b of 1 / sqrt(rank) what is added too.
      const float of_a = weight_deviation(s.in), of_b = weight_deviation(l.rank);
      p.lora.scale = l.count == 0 ? 1.0f : 0.5f;
      if (l.count == 0) {
        p.lora.a = m.normal(l.dtype, {l.rank, s.in}, of_a);
        p.lora.b = m.normal(l.dtype, {s.out, l.rank}, of_b);
        return p;
      }
      p.lora.a = m.normal(l.dtype, {l.count, l.rank, s.in}, of_a);
      p.lora.b = m.normal(l.dtype, {l.count, s.out, l.rank}, of_b);
      m.storage().emplace_back(DType::i32, std::initializer_list<std::int64_t>{s.num_tokens});
      p.lora.index = m.storage().back();
      for (std::int64_t t = 0; t < s.num_tokens; ++t)
        set_element(p.lora.index, t, static_cast<double>(t / 3 % (l.count + 1) - 1));
      return p;
    };
    // The sum has deviation sqrt(2); the unfused form rounds x @ a^T, what b makes of it, and their sum.
    Tolerance t = tolerance(x, {s.in, s.in, l.rank}, 3 + a.intermediates());
    t.atol *= 1.5;
    list.push_back({name, Op::linear, make, t, bench, {}});
  };
  for (const DType x : kActivationDTypes)
    for (const std::int64_t num_tokens : {0, 1, 3, 16, 37, 131}) {
      add(x, x, {num_tokens, 320, 71}, {16, 0, x}, {.bias = true});
      add(x, DType::q4_1, {num_tokens, 320, 71}, {5, 0, DType::f32},
          {.norm = NormKind::rms, .bias = true, .after = Activation::silu, .residual = true});
      add(x, x, {num_tokens, 75, 97}, {8, 3, DType::bf16}, {.residual = true});
    }
  for (const std::int64_t num_tokens : {1, 4, 17, 200}) {
    add(DType::f32, WeightFormat(DType::f32).n_of_m(2, 4), {num_tokens, 640, 130}, {64, 0, DType::f32});
    add(DType::f32, WeightFormat(DType::int4, 64, DType::f16), {num_tokens, 640, 130}, {37, 2, DType::f16});
    add(DType::f32, DType::f32, {num_tokens, 1300, 40}, {512, 0, DType::f32});
    add(DType::f32, DType::f32, {num_tokens, 33, 1}, {1, 1, DType::f32});
  }
  for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
    add(DType::f32, DType::f32, {num_tokens, 4096, 4096}, {16, 0, DType::f32}, {}, true);
    add(DType::f32, DType::q4_1, {num_tokens, 4096, 4096}, {16, 0, DType::f32}, {}, true);
    add(DType::f32, DType::f32, {num_tokens, 576, 576}, {16, 0, DType::f32}, {}, true);
  }
}

// ---- x in 8 bits
//
// Without a prologue codes are those of the reference, bit for bit, and their sums are exact: the tolerance is that of
// unrounded x. Where values are computed before they are rounded, and are off by some `error` (a deviation), a few fall to
// the other side of a tie: each is then off by a scale, in a share error / scale of all, which makes the deviation
// sqrt(scale * error) before a layer and after it; one element more than that may differ in a row, by scale * |w|.
// Scales are largest / 127, weights at most 5 deviations.

double rounded_anew(double largest, double error, std::int64_t in) {
  const double scale = largest / 127;
  return kLambda * std::sqrt(scale * error) + scale * 5 * static_cast<double>(weight_deviation(in));
}
constexpr double kLargestNormal = 5, kLargestHidden = 8;  // of act(gate) * up
// Of computed values of a size about 1, in f32 and written in a dtype.
double error_of(DType dtype) { return 8 * unit_roundoff(DType::f32) + unit_roundoff(dtype); }

// The cases that `add` adds, with x in 8 bits.
template <class Add>
void add_int8(CaseList& list, double rounding, const Add& add) {
  CaseList some;
  add(some);
  for (Case& c : some) {
    c.name += "/int8";
    c.tolerance.atol += rounding;
    c.make = [make = c.make](Maker& m) {
      AnyParams p = make(m);
      set_attr_text(p, "input_quantization", "int8");
      return p;
    };
    list.push_back(std::move(c));
  }
}

void add_int8_linear(CaseList& list, DType x, WeightFormat w, Shape s, Around a = {}, bool bench = false) {
  const bool computed = a.norm != NormKind::none || a.before != Activation::none;
  add_int8(list, computed ? rounded_anew(kLargestNormal, error_of(x), s.in) : 0,
           [&](CaseList& some) { add_linear(some, x, w, s, a, bench); });
}

void add_int8_ffn(CaseList& list, DType x, WeightFormat w, FfnShape s, NormKind norm, Activation activation,
                  bool residual, bool bench = false) {
  double error = error_of(x);
  if (norm != NormKind::none)
    error += std::sqrt(kLargestNormal / 127 * error) +
             kLargestNormal / 127 * static_cast<double>(weight_deviation(s.hidden));
  add_int8(list, rounded_anew(kLargestHidden, error, s.intermediate),
           [&](CaseList& some) { add_ffn(some, x, w, s, norm, activation, residual, bench); });
}

std::vector<WeightFormat> int8_weights() {
  return {{DType::i8, 0, DType::f32},
          {DType::i8, 0, DType::bf16, true},
          {DType::i8, 32, DType::f32},
          {DType::i8, 32, DType::f16, true},
          {DType::i8, 64, DType::f32},
          {DType::i8, 128, DType::f16},
          {DType::i8, 128, DType::f32, true},
          {DType::int4, 0, DType::f32},
          {DType::int4, 0, DType::f16, true},
          {DType::int4, 32, DType::f32},
          {DType::int4, 32, DType::bf16, true},
          {DType::int4, 64, DType::bf16},
          {DType::int4, 64, DType::f32, true},
          {DType::int4, 128, DType::f16},
          {DType::int4, 128, DType::f16, true},
          DType::q8_0,
          DType::q4_0,
          DType::q4_1};
}

// Every way of scales, every number of tokens that the tiles tell apart and more than a pass has, rows that end within a
// step; what stands around; values that are not finite, nothing but zeros, denormals, and the largest.
void add_int8_inputs(CaseList& list) {
  for (const WeightFormat& w : int8_weights()) {
    const bool blocks = dtype_info(w.dtype).is_block;
    const std::int64_t odd = blocks ? 96 : w.dtype == DType::int4 ? 74 : 75;
    for (const std::int64_t num_tokens : {0, 1, 2, 3, 4, 17, 259})
      add_int8_linear(list, DType::f32, w, {num_tokens, odd, 97});
    for (const std::int64_t num_tokens : {1, 7, 64})
      add_int8_linear(list, DType::f32, w, {num_tokens, 608, 131});
    for (const std::int64_t num_tokens : {1, 19}) {
      add_int8_linear(list, DType::f32, w, {num_tokens, 1312, 203},
                      {.norm = NormKind::rms, .residual = true});
      add_int8_linear(list, DType::bf16, w, {num_tokens, 3 * odd, 45},
                      {.bias = true, .after = Activation::silu});
      add_int8_linear(list, DType::f16, w, {num_tokens, 3 * odd, 45},
                      {.norm = NormKind::layer, .bias = true});
      add_int8_linear(list, DType::f32, w, {num_tokens, 320, 71}, {.before = Activation::gelu});
    }
    for (const std::int64_t num_tokens : {1, 37, 261}) {
      add_int8_ffn(list, DType::f32, w, {num_tokens, odd, 320}, NormKind::none, Activation::silu, true);
      add_int8_ffn(list, DType::f32, w, {num_tokens, 288, 416}, NormKind::rms, Activation::gelu_tanh, true);
      if (num_tokens > 37) continue;
      add_int8_ffn(list, DType::bf16, w, {num_tokens, 288, 416}, NormKind::none, Activation::silu, false);
      add_int8(list, 0, [&](CaseList& some) {
        add_qkv(some, DType::f32, {w, DType::q4_1, {DType::i8, 0, DType::f32}}, num_tokens, 288,
                {192, 96, 97}, NormKind::none, true);
      });
      // The winner's logit is about sqrt(in), as the largest of its x is, and every scale.
      add_int8(list, rounded_anew(10, error_of(DType::f32), 288) * std::sqrt(288.0), [&](CaseList& some) {
        add_argmax(some, DType::f32, w, {num_tokens, 288, 509}, NormKind::rms);
      });
    }
    add_int8_linear(list, DType::f32, w, {5, 320, 1});
    add_int8_linear(list, DType::f32, w, {5, 320, 0});
    if (!blocks) {
      add_int8_linear(list, DType::f32, w, {3, 2, 33});
      add_int8_linear(list, DType::f32, w, {1, 9000, 20});  // more groups than scales are held at a time
    }
    for (const std::int64_t num_tokens : {6, 20})
      add_int8(list, 0, [&](CaseList& some) {
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(DType::f32, {num_tokens, 288});
          p.weight = weight(m, w, 61, 288, {&p.weight_quantization, &p.weight_sparsity});
          set_element(p.x, 7, std::numeric_limits<double>::infinity());
          set_element(p.x, 288 + 3, std::numeric_limits<double>::quiet_NaN());
          for (std::int64_t k = 0; k < 288; ++k) {
            set_element(p.x, 2 * 288 + k, k % 2 == 0 ? 0.0 : -0.0);
            set_element(p.x, 3 * 288 + k, static_cast<double>(k) * 0x1p-149);
            set_element(p.x, 4 * 288 + k, k % 3 == 0 ? 127.0 : static_cast<double>(k % 5) + 0.5);  // ties
          }
          return p;
        };
        Tolerance t = tolerance(DType::f32, {288}, 0);
        t.atol *= 127;  // the row of ties
        some.push_back(
            {fmt::format("linear/f32/{}/special/{}", w.name(), num_tokens), Op::linear, make, t, false, {}});
        const auto make_large = [=](Maker& m) {
          LinearParams p;
          p.x = m.filled(DType::f32, {num_tokens, 64}, 1e36f);
          set_element(p.x, 40, 3e38);
          p.weight = weight(m, w, 33, 64, {&p.weight_quantization, &p.weight_sparsity});
          return p;
        };
        some.push_back({fmt::format("linear/f32/{}/largest/{}", w.name(), num_tokens),
                        Op::linear,
                        make_large,
                        {1e-5, 1e33},
                        false,
                        {}});
      });
  }
  const WeightFormat kBench[] = {{DType::i8, 0, DType::f32},
                                 {DType::int4, 128, DType::f16},
                                 {DType::int4, 32, DType::f16},
                                 DType::q8_0,
                                 DType::q4_0,
                                 DType::q4_1};
  for (const WeightFormat& w : kBench)
    for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
      add_int8_linear(list, DType::f32, w, {num_tokens, 4096, 4096}, {}, true);
      add_int8_linear(list, DType::f32, w, {num_tokens, 4096, 14336}, {}, true);
      add_int8_ffn(list, DType::f32, w, {num_tokens, 2048, 5632}, NormKind::rms, Activation::silu, true,
                   true);
    }
}

}  // namespace

void add_linear_cases(CaseList& list) {
  add_dtypes_and_sizes(list);
  add_surroundings(list);
  add_composites(list);
  add_strides(list);
  add_hostile_values(list);
  add_few_tokens(list);
  add_scaled_weights(list);
  add_sparse_weights(list);
  add_adapters(list);
  add_int8_inputs(list);
  add_benchmarks(list);
}

void add_linear_device_cases(CaseList& list) {
  const WeightFormat w = DType::bf16;
  for (const std::int64_t num_tokens : {1, 4, 64}) {
    add_linear(list, DType::bf16, w, {num_tokens, 4096, 4096}, {}, true);
    add_linear(list, DType::bf16, w, {num_tokens, 4096, 14336}, {}, true);
  }
  add_linear(list, DType::bf16, w, {1, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  add_linear(list, DType::bf16, w, {1024, 4096, 4096}, {}, true);
  add_linear(list, DType::bf16, w, {1024, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  add_qkv(list, DType::bf16, {w, w, w}, 1, 4096, {4096, 1024, 1024}, NormKind::rms, false, true);
  add_qkv(list, DType::bf16, {w, w, w}, 1, 2048, {2048, 512, 512}, NormKind::rms, false, true);
  for (const std::int64_t num_tokens : {1, 2, 64, 1024}) {
    add_ffn(list, DType::bf16, w, {num_tokens, 4096, 14336}, NormKind::rms, Activation::silu, true, true);
    add_ffn(list, DType::bf16, w, {num_tokens, 2048, 8192}, NormKind::rms, Activation::silu, true, true);
  }
}

}  // namespace kf::cases
