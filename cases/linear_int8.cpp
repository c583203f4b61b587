// Linear layers whose inputs are quantized to 8 bits.
#include "linear_cases.h"

namespace kf::cases::linear {
namespace {

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
  std::vector<WeightFormat> formats = integer_formats();
  formats.insert(formats.end(), {{DType::i8, 32, DType::f32},
                                 {DType::i8, 32, DType::f16, true},
                                 {DType::i8, 64, DType::f32},
                                 {DType::i8, 128, DType::f32, true},
                                 DType::q8_0,
                                 DType::q4_0,
                                 DType::q4_1});
  return formats;
}

}  // namespace

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
    for (const std::int64_t num_tokens : {0, 1, 37, 261}) {
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

}  // namespace kf::cases::linear
