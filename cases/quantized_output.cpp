// Tolerances. The result y of an op is off by e of itself: by its arithmetic, and unfused by each rounding of an
// intermediate to the dtype of x. So is the largest |y|, and with it the scale. y / scale is then off by 2 e of itself, of at
// most 127 steps of i8, and of at most 16 or 8 steps of e4m3's 8 or e5m2's 4 codes a binade; what is less than k steps apart
// rounds to codes at most k apart.
#include "case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kf/ops/elementwise.h"
#include "kf/ops/norm.h"

namespace kf::cases {
namespace {

constexpr CodeDType kCodes[] = {CodeDType::i8, CodeDType::fp8_e4m3, CodeDType::fp8_e5m2};
constexpr DType kDtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr double kU = 0x1p-24;

struct Shape {
  const char* name;
  std::vector<std::int64_t> leading;
  std::int64_t n;
  bool strided = false, bench = false;
};
const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {{"1x1", {1}, 1},
                                          {"3x7", {3}, 7},
                                          {"2x3x31", {2, 3}, 31, true},
                                          {"5x1021", {5}, 1021},
                                          {"33x576", {33}, 576},
                                          {"0x16", {0}, 16},
                                          {"4x0", {4}, 0},
                                          {"1x20011", {1}, 20011},
                                          {"2048x4096", {2048}, 4096, false, true},
                                          {"1x576", {1}, 576, false, true}};
  return list;
}

// Multiples of 1/16 in [-4, 4): sums of two are exact in every dtype, so that no cancellation magnifies a rounding.
TensorView grid(Maker& m, DType dtype, const Shape& s) {
  std::int64_t rows = 1;
  for (const std::int64_t d : s.leading) rows *= d;
  TensorView t = m.filled(dtype, {rows, s.n}, 0.0f);
  std::uniform_int_distribution<int> sixteenths(-64, 63);
  for (std::int64_t i = 0; i < t.numel(); ++i) set_element(t, i, sixteenths(m.rng()) / 16.0);
  std::vector<std::int64_t> shape = s.leading;
  shape.push_back(s.n);
  t = TensorView::contiguous(t.data, dtype, shape);
  return s.strided ? m.strided(t, 5) : t;
}

// e, and what is off by an absolute amount, for rows whose largest value is at least 1.
Tolerance tolerance(DType dtype, CodeDType codes, double operations, int roundings, double atol = 0) {
  Tolerance t;
  const double e = operations * kU + roundings * unit_roundoff(dtype);
  const double steps = codes == CodeDType::i8 ? 127 : codes == CodeDType::fp8_e4m3 ? 16 : 8;
  t.codes = std::max(1, static_cast<int>(std::ceil(2 * e * steps)));
  t.rtol = e + 2 * kU;  // of the scale
  t.atol = t.code_floor = atol + (dtype == DType::f16 ? 0x1p-24 : 0x1p-120);
  return t;
}

void set_quantization(Maker& m, OutputQuantization& q, CodeDType codes, float static_scale) {
  q.dtype = codes;
  if (static_scale != 0) q.static_scale = m.filled(DType::f32, {1}, static_scale);
}

// `make(m)` gives the params without their quantization.
template <class Make>
void add(CaseList& list, Op op, const std::string& variant, CodeDType codes, float static_scale,
         const Tolerance& t, bool bench, std::vector<std::string> want, const Make& make) {
  Case c;
  c.name = fmt::format("{}/{}_{}/{}", op_name(op), static_scale == 0 ? "to" : "to_static",
                       kCodeDTypeNames[static_cast<int>(codes)], variant);
  c.op = op;
  c.make = [=](Maker& m) -> AnyParams {
    auto p = make(m);
    set_quantization(m, p.quantization, codes, static_scale);
    return p;
  };
  c.tolerance = t;
  c.bench = bench;
  c.want = std::move(want);
  if (static_scale == 0) c.want.push_back("out_scales");
  list.push_back(std::move(c));
}

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of zeros, with a NaN, with infinities, of denormals, of the ends, of ties between codes.
TensorView hostile(Maker& m, DType dtype) {
  const TensorView x = m.filled(dtype, {7, 37}, 0.0f);
  for (std::int64_t i = 0; i < 37; ++i) {
    set_element(x, 1 * 37 + i, i == 5 ? kNan : 0.25 * static_cast<double>(i));
    set_element(x, 2 * 37 + i, i == 7 ? kInf : i == 8 ? -kInf : -0.5);
    set_element(x, 3 * 37 + i,
                dtype == DType::f16 ? 0x1p-24 * static_cast<double>(i) : 1e-42 * static_cast<double>(i));
    set_element(x, 4 * 37 + i, i % 2 ? 65504.0 : -65504.0);
    set_element(x, 5 * 37 + i, i == 0 ? 127.0 : static_cast<double>(i) + 0.5);
    set_element(x, 6 * 37 + i, i % 3 == 0 ? -0.0 : i == 1 ? kInf : 0.0);
  }
  return x;
}

void add_quantize(CaseList& list, DType dtype, CodeDType codes) {
  // The division alone.
  const Tolerance t = tolerance(dtype, codes, 2, 0);
  const auto name = [&](const char* shape) { return fmt::format("{}/{}", dtype_name(dtype), shape); };
  for (const Shape& s : shapes())
    for (const float scale : {0.0f, 0.03f})
      if (scale == 0 || !s.bench)
        add(list, Op::quantize, name(s.name), codes, scale, t, s.bench, {}, [=](Maker& m) {
          QuantizeParams p;
          p.x = grid(m, dtype, s);
          return p;
        });
  for (const float scale : {0.0f, 0.03f, 1e-40f, 3e38f})
    add(list, Op::quantize, name(fmt::format("hostile_{}", scale).c_str()), codes, scale, t, false, {},
        [=](Maker& m) {
          QuantizeParams p;
          p.x = hostile(m, dtype);
          return p;
        });
}

void add_norms(CaseList& list, DType dtype, CodeDType codes, const Shape& s) {
  for (const bool residual : {false, true}) {
    const std::string name = fmt::format("{}/{}{}", dtype_name(dtype), s.name, residual ? "_residual" : "");
    const std::vector<std::string> want =
        residual ? std::vector<std::string>{"residual_out"} : std::vector<std::string>{};
    for (const float scale : {0.0f, 0.05f}) {
      if (scale != 0 && s.bench) continue;
      // 64 u by the sum of squares, 4 by the rest; unfused, y is rounded.
      add(list, Op::rms_norm, name, codes, scale, tolerance(dtype, codes, 68, 1), s.bench, want,
          [=](Maker& m) {
            RmsNormParams p;
            p.x = grid(m, dtype, s);
            p.weight = m.normal(DType::f32, {s.n}, 0.3f, 1.0f);
            if (residual) p.residual = grid(m, dtype, s);
            return p;
          });
      // The mean is off by 128 u of the magnitudes' mean, at most two deviations; weights stay below 4.
      add(list, Op::layer_norm, name, codes, scale, tolerance(dtype, codes, 68, 1, 4 * 2 * 128 * kU), s.bench,
          want, [=](Maker& m) {
            LayerNormParams p;
            p.x = grid(m, dtype, s);
            p.weight = m.normal(DType::f32, {s.n}, 0.3f, 1.0f);
            p.bias = m.normal(DType::f32, {s.n}, 0.5f, 2.0f);
            if (residual) p.residual = grid(m, dtype, s);
            return p;
          });
    }
  }
}

// As cases/elementwise.cpp has it: operations, and an absolute amount by erf and tanh.
constexpr struct {
  Activation kind;
  double operations, atol;
} kKinds[] = {{Activation::silu, 8, 0},
              {Activation::gelu, 10, 1.3e-6},
              {Activation::gelu_tanh, 20, 1e-8},
              {Activation::relu, 1, 0}};

void add_activations(CaseList& list, DType dtype, CodeDType codes, const Shape& s) {
  for (const auto& k : kKinds) {
    // The activation of 16-bit data may have an exponential off by 2^-16.
    const double operations = k.operations + (dtype == DType::f32 ? 0 : 256);
    const std::string name =
        fmt::format("{}/{}/{}", kActivationNames[static_cast<int>(k.kind)], dtype_name(dtype), s.name);
    for (const float scale : {0.0f, 0.05f}) {
      const bool few = s.n == 7 || s.n == 1021 || s.n == 4096;  // of the shapes, for all but the usual
      if (k.kind != Activation::silu && (scale != 0 || !few)) continue;
      if (scale != 0 && s.bench) continue;
      add(list, Op::activation, name, codes, scale, tolerance(dtype, codes, operations, 1, k.atol), s.bench,
          {}, [=](Maker& m) {
            ActivationParams p;
            p.x = grid(m, dtype, s);
            p.kind = k.kind;
            return p;
          });
      // |up| stays below 4; act(gate) is rounded as well.
      add(list, Op::gated_activation, name, codes, scale,
          tolerance(dtype, codes, operations + 1, 2, 4 * k.atol), s.bench, {}, [=](Maker& m) {
            GatedActivationParams p;
            p.gate = grid(m, dtype, s);
            p.up = grid(m, dtype, s);
            p.kind = k.kind;
            return p;
          });
    }
  }
}

void add_hostile(CaseList& list, DType dtype, CodeDType codes) {
  const std::string name = fmt::format("{}/hostile", dtype_name(dtype));
  add(list, Op::rms_norm, name, codes, 0.0f, tolerance(dtype, codes, 68, 1), false, {}, [=](Maker& m) {
    RmsNormParams p;
    p.x = hostile(m, dtype);
    p.weight = m.filled(DType::f32, {37}, 1.5f);
    return p;
  });
  add(list, Op::gated_activation, name, codes, 0.0f, tolerance(dtype, codes, 9 + 256, 2), false, {},
      [=](Maker& m) {
        GatedActivationParams p;
        p.gate = hostile(m, dtype);
        // Unfused, denormals of f16 lose what the scale makes large again.
        for (std::int64_t i = 0; i < 37; ++i) set_element(p.gate, 3 * 37 + i, 0.25 * static_cast<double>(i));
        p.up = m.uniform(dtype, {7, 37}, -1.0f, 1.0f);  // the product of 65504 stays in f16
        return p;
      });
}

}  // namespace

void add_quantized_output_cases(CaseList& list) {
  for (const DType dtype : kDtypes)
    for (const CodeDType codes : kCodes) {
      add_quantize(list, dtype, codes);
      for (const Shape& s : shapes()) {
        add_norms(list, dtype, codes, s);
        add_activations(list, dtype, codes, s);
      }
      add_hostile(list, dtype, codes);
    }
}

}  // namespace kf::cases
