// Linear layers over weights with scales beside them, and over sparse ones.
#include "linear_cases.h"

namespace kf::cases::linear {

// Weights with scales beside them: every way in which these may lie, every number of tokens, rows that end within a
// byte's, a step's and a group's elements, x with an element too large for arithmetic on undecoded codes.
std::vector<WeightFormat> integer_formats() {
  return {{DType::int4, 0, DType::f32},   {DType::int4, 0, DType::f16, true},
          {DType::int4, 32, DType::f32},  {DType::int4, 32, DType::bf16, true},
          {DType::int4, 64, DType::bf16}, {DType::int4, 64, DType::f32, true},
          {DType::int4, 128, DType::f16}, {DType::int4, 128, DType::f16, true},
          {DType::i8, 0, DType::f32},     {DType::i8, 0, DType::bf16, true},
          {DType::i8, 128, DType::f16}};
}

static std::vector<WeightFormat> scaled_formats() {
  std::vector<WeightFormat> formats = integer_formats();
  formats.insert(formats.end(), {{DType::fp8_e4m3, 0, DType::f32},
                                 {DType::fp8_e4m3, 0, DType::f32, false, 0},
                                 {DType::fp8_e4m3, 128, DType::f32, false, 128},
                                 {DType::fp8_e4m3, 128, DType::bf16},
                                 {DType::fp8_e5m2, 0, DType::f16},
                                 {DType::fp8_e5m2, 0, DType::f32, false, 0},
                                 {DType::fp8_e5m2, 128, DType::bf16, false, 128}});
  return formats;
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
    for (const std::int64_t num_tokens : {0, 1, 2, 3, 4, 7, 9, 16, 17, 64}) {
      add_linear(list, DType::f32, w, {num_tokens, odd, 97});
      add_linear(list, DType::f32, w, {num_tokens, 1280, 103}, {.norm = NormKind::rms, .residual = true});
    }
    for (const std::int64_t num_tokens : {1, 3, 11, 37}) {
      add_ffn(list, DType::f32, w, {num_tokens, odd, 320}, NormKind::rms, Activation::silu, true);
      add_qkv(list, DType::f32, {w, DType::q4_1, WeightFormat(DType::f32).sparse(0.7)}, num_tokens, 288,
              {192, 96, 97}, NormKind::rms, true);
      add_argmax(list, DType::f32, w, {num_tokens, 288, 509}, NormKind::rms);
    }
    add_linear(list, DType::f32, w, {5, 320, 1});
    add_linear(list, DType::f32, w, {5, 320, 0});
  }
  // As libraries of 2:4 products take them: no part smaller than a tile's 16.
  for (const DType values : {DType::f16, DType::bf16})
    for (const std::int64_t num_tokens : {32, 48, 272}) {
      add_linear(list, values, WeightFormat(values).n_of_m(2, 4), {num_tokens, 256, 192});
      add_linear(list, values, WeightFormat(values).n_of_m(2, 4), {num_tokens, 1088, 320},
                 {.residual = true});
    }
  for (const DType values : {DType::f16, DType::bf16})
    for (const WeightFormat& w : patterns(values))
      for (const std::int64_t num_tokens : {1, 3, 13, 19})
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
      for (const std::int64_t num_tokens : {1, 3, 6, 12, 37}) {
        add_linear(list, DType::f32, w, {num_tokens, 608, 103}, {.norm = NormKind::rms, .residual = true});
        add_linear(list, DType::bf16, w, {num_tokens, 72, 45});
        add_ffn(list, DType::f32, w, {num_tokens, 96, 160}, NormKind::layer, Activation::gelu, false);
      }
      add_linear(list, DType::f32, w, {2, 8960, 6});  // more groups than scales are held at a time
    }
  for (const WeightFormat& w : {WeightFormat(DType::f32).n_of_m(2, 4), WeightFormat(DType::f32).sparse(0.8)})
    for (const std::int64_t num_tokens : {4, 11, 20}) {
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

}  // namespace kf::cases::linear
