// Tolerances. u is the unit roundoff of f32; kernel and reference each round once to the dtype of `out`, and
// each operation in f32 adds u.
#include "case.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kf/ops/elementwise.h"

namespace kf::cases {
namespace {

constexpr DType kActivationDtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr double kU = 0x1p-24;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// `ops` operations in f32; `atol` what the approximations add.
Tolerance tolerance(DType dtype, double ops, double atol = 0) {
  // Denormal results: f16 keeps them with their spacing, the exponential flushes those of f32.
  return {ops * kU + 2 * unit_roundoff(dtype), atol + (dtype == DType::f16 ? 0x1p-24 : 0x1p-120)};
}

// exp is off by 2 u; erf by 4e-7 absolute, seen at half of |x| <= 5.54 for negative x and below rtol
// otherwise; tanh is an exponential whose argument, up to 88, is off by 4 u of itself, where the result is
// below 1e-4. A vendor's operator may have x / 2 (1 + tanh) as it stands: tanh near -1 is off by 2 ulps, there 2 u,
// seen at |x| / 2 <= 2.77.
Tolerance activation_tolerance(DType dtype, Activation kind, double up = 1) {
  switch (kind) {
    case Activation::gelu:
      return tolerance(dtype, 10, 1.3e-6 * up);
    case Activation::gelu_tanh: {
      Tolerance t = tolerance(dtype, 20, 1e-8 * up);
      t.device_atol = 2 * kU * 2.77 * up;
      return t;
    }
    default:
      return tolerance(dtype, 8);
  }
}

// |up| stays below 6; unfused, act(gate) is rounded to the dtype.
Tolerance gated_tolerance(DType dtype, Activation kind) {
  Tolerance t = activation_tolerance(dtype, kind, 6);
  t.rtol += unit_roundoff(dtype) + kU;
  if (dtype == DType::f16) t.atol += 6 * 0x1p-25;
  return t;
}

// What has tripped an implementation somewhere.
const std::vector<float>& hostile_values() {
  static const std::vector<float> values = {
      0.0f,   -0.0f,  1e-40f, -1e-40f, 65504.0f, -65504.0f, 3e38f, -3e38f, kInf,  -kInf, kNan,  88.8f,
      -88.8f, -87.4f, 104.f,  -104.f,  1e-8f,    -1e-8f,    5.6f,  -5.6f,  -5.5f, 1e20f, -1e20f};
  return values;
}

TensorView hostile(Maker& m, DType dtype) {
  const TensorView t = m.filled(dtype, {2, 37}, 1.5f);
  for (std::size_t i = 0; i < hostile_values().size(); ++i)
    set_element(t, static_cast<std::int64_t>(i) + 9, hostile_values()[i]);
  return t;
}

struct Shape {
  std::string name;
  std::function<TensorView(Maker&, DType, float stddev)> make;
  bool bench = false;
};

const std::vector<Shape>& shapes() {
  const auto matrix = [](std::int64_t rows, std::int64_t n, bool bench) {
    return Shape{fmt::format("{}x{}", rows, n),
                 [=](Maker& m, DType t, float stddev) {
                   return m.normal(t, {rows, n}, stddev);
                 },
                 bench};
  };
  static const std::vector<Shape> list = {matrix(1, 1, false),
                                          matrix(3, 7, false),
                                          matrix(1, 1536, false),
                                          matrix(5, 1021, false),
                                          matrix(33, 1031, false),
                                          matrix(0, 16, false),
                                          matrix(4, 0, false),
                                          {"strided",
                                           [](Maker& m, DType t, float s) {
                                             return m.strided(m.normal(t, {2, 3, 45}, s), 3);
                                           }},
                                          {"hostile", [](Maker& m, DType t, float) { return hostile(m, t); }},
                                          matrix(8192, 4096, true),
                                          matrix(1, 1536, true)};
  return list;
}

// One case a dtype and shape; make(m, dtype, shape) gives the params.
template <class Make>
void add(CaseList& list, Op op, const std::string& variant, const std::function<Tolerance(DType)>& tolerance,
         const Make& make) {
  for (const DType dtype : kActivationDtypes) {
    for (const Shape& shape : shapes()) {
      Case c;
      c.name = fmt::format("{}/{}/{}/{}{}", op_name(op), variant, dtype_name(dtype), shape.name,
                           shape.bench ? "_bench" : "");
      c.op = op;
      c.make = [=](Maker& m) -> AnyParams { return make(m, dtype, shape); };
      c.tolerance = tolerance(dtype);
      c.bench = shape.bench;
      list.push_back(std::move(c));
    }
  }
}

void add_binary(CaseList& list) {
  for (const BinaryKind kind : {BinaryKind::add, BinaryKind::mul})
    add(
        list, Op::binary, kBinaryKindNames[static_cast<int>(kind)], [](DType t) { return tolerance(t, 1); },
        [=](Maker& m, DType dtype, const Shape& shape) {
          BinaryParams p;
          p.a = shape.make(m, dtype, 1.0f);
          p.b = shape.make(m, dtype, 1.0f);
          p.kind = kind;
          return p;
        });
}

void add_activations(CaseList& list) {
  for (const Activation kind :
       {Activation::none, Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
    const char* name = kActivationNames[static_cast<int>(kind)];
    add(
        list, Op::activation, name, [=](DType t) { return activation_tolerance(t, kind); },
        [=](Maker& m, DType dtype, const Shape& shape) {
          ActivationParams p;
          p.x = shape.make(m, dtype, 3.0f);
          p.kind = kind;
          return p;
        });
    add(
        list, Op::gated_activation, name, [=](DType t) { return gated_tolerance(t, kind); },
        [=](Maker& m, DType dtype, const Shape& shape) {
          GatedActivationParams p;
          p.gate = shape.make(m, dtype, 3.0f);
          p.up = m.normal(dtype, {p.gate.numel()});
          p.up = TensorView::contiguous(p.up.data, dtype,
                                        std::span(p.gate.shape.data(), std::size_t(p.gate.rank)));
          p.kind = kind;
          return p;
        });
  }
}

// The argument of an exponential is off by u of itself and of the shift: 2 * 88 u at most where the result is
// not zero.
Tolerance softmax_tolerance(DType dtype) { return tolerance(dtype, 180); }

void add_softmax_case(CaseList& list, DType dtype, const std::string& name, bool lse, float scale, bool bench,
                      const std::function<TensorView(Maker&)>& x) {
  Case c;
  c.name = fmt::format("softmax/{}/{}", dtype_name(dtype), name);
  c.op = Op::softmax;
  c.make = [=](Maker& m) -> AnyParams {
    SoftmaxParams p;
    p.x = x(m);
    p.scale = scale;
    return p;
  };
  c.tolerance = softmax_tolerance(dtype);
  c.bench = bench;
  if (lse) c.want = {"lse"};
  list.push_back(std::move(c));
}

// -inf throughout; with one finite element; with a NaN; +inf; large and small together.
TensorView hostile_rows(Maker& m, DType dtype) {
  const TensorView x = m.filled(dtype, {6, 41}, -kInf);
  set_element(x, 1 * 41 + 17, 2.0);
  set_element(x, 2 * 41 + 40, kNan);
  for (std::int64_t i = 0; i < 41; ++i) {
    set_element(x, 3 * 41 + i, i == 3 ? kInf : 1.0);
    set_element(x, 4 * 41 + i, i % 2 ? 65504.0 : -65504.0);
    set_element(x, 5 * 41 + i, -static_cast<double>(i));
  }
  return x;
}

void add_softmax(CaseList& list) {
  for (const DType dtype : kActivationDtypes) {
    for (const std::int64_t n : {1, 3, 64, 1021, 50000})
      add_softmax_case(list, dtype, fmt::format("4x{}", n), true, 1.0f, false, [=](Maker& m) {
        return m.normal(dtype, {4, n}, 3.0f);
      });
    add_softmax_case(list, dtype, "9x33x129", true, 0.125f, false, [=](Maker& m) {
      return m.normal(dtype, {9, 33, 129}, 8.0f);
    });
    add_softmax_case(list, dtype, "strided", true, -0.5f, false, [=](Maker& m) {
      return m.strided(m.normal(dtype, {2, 3, 45}, 3.0f), 3);
    });
    add_softmax_case(list, dtype, "0x16", true, 1.0f, false, [=](Maker& m) {
      return m.normal(dtype, {0, 16});
    });
    add_softmax_case(list, dtype, "4x0", true, 1.0f, false, [=](Maker& m) {
      return m.normal(dtype, {4, 0});
    });
    add_softmax_case(list, dtype, "hostile", true, 1.0f, false,
                     [=](Maker& m) { return hostile_rows(m, dtype); });
    add_softmax_case(list, dtype, "8192x4096", false, 1.0f, true, [=](Maker& m) {
      return m.normal(dtype, {8192, 4096}, 3.0f);
    });
  }
}

struct MaskForm {
  const char* name;
  std::vector<std::int64_t> shape;  // of x [2, 3, 5, n]; -1: n
  DType dtype;
};

// z is off by u of itself and of the mask, besides what an unmasked softmax adds: |z| stays below 64.
void add_masked_softmax(CaseList& list) {
  const std::vector<MaskForm> forms = {{"whole", {2, 3, 5, -1}, DType::boolean},
                                       {"rows", {5, -1}, DType::boolean},
                                       {"heads", {2, 1, 5, -1}, DType::f32},
                                       {"keys", {2, 1, 1, -1}, DType::bf16},
                                       {"one_a_row", {2, 3, 5, 1}, DType::f16},
                                       {"one_a_row_boolean", {3, 1, 1}, DType::boolean},
                                       {"one", {1}, DType::f32}};
  for (const DType dtype : kActivationDtypes)
    for (const MaskForm& form : forms)
      for (const std::int64_t n : {1, 67, 1021}) {
        Case c;
        c.name =
            fmt::format("softmax/{}/mask_{}_{}/{}", dtype_name(dtype), dtype_name(form.dtype), form.name, n);
        c.op = Op::softmax;
        c.make = [=](Maker& m) -> AnyParams {
          SoftmaxParams p;
          p.x = m.strided(m.normal(dtype, {2, 3, 5, n}, 4.0f), 3);
          p.scale = 0.5f;
          std::vector<std::int64_t> shape = form.shape;
          std::int64_t count = 1;
          for (std::int64_t& d : shape) count *= d = d < 0 ? n : d;
          const TensorView mask = m.uniform(form.dtype, {count}, -8.0f, 8.0f);
          std::bernoulli_distribution shown(0.7);
          for (std::int64_t i = 0; i < count; ++i)
            if (form.dtype == DType::boolean)
              set_element(mask, i, shown(m.rng()));
            else if (!shown(m.rng()))
              set_element(mask, i, -static_cast<double>(kInf));
          p.mask = TensorView::contiguous(mask.data, form.dtype, shape);
          return p;
        };
        c.tolerance = softmax_tolerance(dtype);
        c.tolerance.rtol += 2 * 64 * kU;
        c.want = {"lse"};
        list.push_back(std::move(c));
      }
  // What a boolean mask hides counts for nothing, NaN and infinities too; a row may be hidden whole.
  for (const DType dtype : kActivationDtypes) {
    Case c;
    c.name = fmt::format("softmax/{}/mask_hides", dtype_name(dtype));
    c.op = Op::softmax;
    c.make = [=](Maker& m) -> AnyParams {
      SoftmaxParams p;
      p.x = hostile_rows(m, dtype);
      p.mask = m.filled(DType::boolean, {6, 41}, 1.0f);
      for (std::int64_t i = 0; i < 6 * 41; ++i)
        if (const double x = element(p.x, i); std::isnan(x) || x == kInf || i < 41)
          set_element(p.mask, i, 0.0);
      return p;
    };
    c.tolerance = softmax_tolerance(dtype);
    c.want = {"lse"};
    list.push_back(std::move(c));
  }
}

void add_dequantize(CaseList& list) {
  for (const DType from : {DType::f32, DType::f16, DType::bf16, DType::q4_0, DType::q4_1, DType::q5_0,
                           DType::q8_0, DType::q4_k, DType::q6_k}) {
    for (const DType to : kActivationDtypes) {
      for (const bool bench : {false, true}) {
        const std::int64_t rows = bench ? 4096 : 7,
                           n = bench ? 4096 : std::max(96, 2 * dtype_info(from).block_elems);
        Case c;
        c.name = fmt::format("dequantize/{}_to_{}/{}x{}", dtype_name(from), dtype_name(to), rows, n);
        c.op = Op::dequantize;
        c.make = [=](Maker& m) -> AnyParams {
          DequantizeParams p;
          p.x = m.normal(from, {rows, n});
          p.out = m.filled(to, {rows, n}, 0.0f);
          return p;
        };
        c.tolerance = tolerance(to, 2, 16 * kU);  // q d + m: both terms below 16
        c.bench = bench;
        list.push_back(std::move(c));
      }
    }
  }
}

}  // namespace

void add_elementwise_cases(CaseList& list) {
  add_binary(list);
  add_activations(list);
  add_softmax(list);
  add_masked_softmax(list);
  add_dequantize(list);
}

void add_elementwise_device_cases(CaseList& list) {
  const DType dtype = DType::bf16;
  for (const auto& [rows, n] : {std::pair{16384, 4096}, {8192, 1024}, {8192, 128}, {64, 14336}, {1, 4096}}) {
    const std::string shape = fmt::format("{}x{}", rows, n);
    const auto normal = [rows, n](Maker& m, float stddev) { return m.normal(dtype, {rows, n}, stddev); };
    const auto add = [&](Op op, const std::string& name, const Tolerance& t,
                         const std::function<AnyParams(Maker&)>& make) {
      list.push_back({fmt::format("{}/bf16/{}", name, shape), op, make, t, /*bench=*/true, {}});
    };
    add(Op::binary, "binary/add", tolerance(dtype, 1),
        [=](Maker& m) -> AnyParams { return BinaryParams{.a = normal(m, 1.0f), .b = normal(m, 1.0f)}; });
    for (const Activation kind : {Activation::silu, Activation::gelu}) {
      const std::string name = kActivationNames[static_cast<int>(kind)];
      add(Op::activation, "activation/" + name, activation_tolerance(dtype, kind),
          [=](Maker& m) -> AnyParams { return ActivationParams{.x = normal(m, 3.0f), .kind = kind}; });
      add(Op::gated_activation, "gated_activation/" + name, gated_tolerance(dtype, kind),
          [=](Maker& m) -> AnyParams {
            return GatedActivationParams{.gate = normal(m, 3.0f), .up = normal(m, 1.0f), .kind = kind};
          });
    }
    add_softmax_case(list, dtype, shape, false, 1.0f, true, [=](Maker& m) { return normal(m, 3.0f); });
  }
}

}  // namespace kf::cases
