// Tolerances. u is the unit roundoff of f32. A sum is taken in partial sums of at most 128 addends, so that
// it is off by 128 u of the sum of magnitudes at worst; that of squares counts half in the result. Kernel and
// reference each round once to the dtype of `out`.
#include "case.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "kf/ops/norm.h"

namespace kf::cases {
namespace {

struct Form {
  std::string name;
  bool residual = false;
  int apart = 0;     // elements between rows, of rank 3
  bool bias = true;  // layer norm
  float mean = 0, stddev = 1;
  DType weight = DType::f32;
  float weight_offset = 0;  // RMSNorm
};

constexpr double kSumError = 128;

Tolerance tolerance(DType dtype, const Form& f, bool centred) {
  const double u = unit_roundoff(DType::f32);
  Tolerance t;
  t.rtol = (kSumError / 2 + 4) * u + 2 * unit_roundoff(dtype);
  // The mean's error, in units of the deviation; weights stay below 4.
  if (centred) t.atol = 4 * kSumError * u * (1 + std::abs(f.mean) / f.stddev);
  // Unfused, the sum with the residual is rounded to the dtype; |h| stays below 8 deviations.
  if (f.residual) t.rtol += unit_roundoff(dtype);
  if (f.residual && centred) t.atol += 4 * 8 * unit_roundoff(dtype);
  if (dtype == DType::f16) t.atol += 0x1p-24;  // spacing of denormals
  return t;
}

template <class P>
P make_params(Maker& m, DType dtype, std::int64_t rows, std::int64_t n, const Form& f) {
  P p;
  const auto operand = [&] {
    if (f.apart > 0) return m.strided(m.normal(dtype, {2, rows, n}, f.stddev, f.mean), f.apart);
    return m.normal(dtype, {rows, n}, f.stddev, f.mean);
  };
  p.x = operand();
  p.weight = m.normal(f.weight, {n}, 0.3f, 1.0f - f.weight_offset);
  if (f.residual) p.residual = operand();
  return p;
}

void add(CaseList& list, Op op, DType dtype, std::int64_t rows, std::int64_t n, const Form& f,
         bool bench = false) {
  const bool centred = op == Op::layer_norm;
  Case c;
  c.name = fmt::format("{}/{}/{}x{}{}", op_name(op), dtype_name(dtype), rows, n, f.name);
  c.op = op;
  c.make = [=](Maker& m) -> AnyParams {
    if (!centred) {
      auto p = make_params<RmsNormParams>(m, dtype, rows, n, f);
      p.weight_offset = f.weight_offset;
      return p;
    }
    auto p = make_params<LayerNormParams>(m, dtype, rows, n, f);
    if (f.bias) p.bias = m.normal(f.weight, {n}, 0.5f);
    return p;
  };
  c.tolerance = tolerance(dtype, f, centred);
  c.bench = bench;
  if (f.residual) c.want = {"residual_out"};
  list.push_back(std::move(c));
}

Case hostile(Op op, DType dtype, const char* name, std::vector<float> values) {
  Case c;
  c.name = fmt::format("{}/{}/hostile_{}", op_name(op), dtype_name(dtype), name);
  c.op = op;
  c.make = [=](Maker& m) -> AnyParams {
    const TensorView x = m.normal(dtype, {3, 67});
    for (std::size_t i = 0; i < values.size(); ++i)
      set_element(x, 67 + 11 * static_cast<std::int64_t>(i), values[i]);
    const TensorView weight = m.normal(DType::f32, {67}, 0.3f, 1.0f);
    if (op == Op::rms_norm) {
      RmsNormParams p;
      p.x = x;
      p.weight = weight;
      return p;
    }
    LayerNormParams p;
    p.x = x;
    p.weight = weight;
    return p;
  };
  c.tolerance = tolerance(dtype, Form{""}, op == Op::layer_norm);
  return c;
}

}  // namespace

void add_norm_cases(CaseList& list) {
  const Form plain{""}, residual{"_residual", true}, strided{"_residual_strided", true, 5};
  const Form no_bias{"_no_bias", false, 0, false}, offset{"_mean100", false, 0, true, 100.0f, 1.0f};
  const Form half_weight{"_bf16_weight", false, 0, true, 0.0f, 1.0f, DType::bf16};
  for (const Op op : {Op::rms_norm, Op::layer_norm}) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const std::int64_t n : {1, 7, 31, 64, 576, 1021, 4096}) {
        add(list, op, dtype, 3, n, plain);
        add(list, op, dtype, 5, n, residual);
      }
      add(list, op, dtype, 4, 101, strided);
      add(list, op, dtype, 129, 576, residual);  // more than one thread's worth
      add(list, op, dtype, 0, 64, plain);
      add(list, op, dtype, 3, 0, plain);
      add(list, op, dtype, 3, 333, half_weight);
      add(list, op, dtype, 8192, 4096, plain, /*bench=*/true);
      add(list, op, dtype, 2048, 4096, residual, /*bench=*/true);
      add(list, op, dtype, 1, 576, residual, /*bench=*/true);
      list.push_back(hostile(op, dtype, "inf", {std::numeric_limits<float>::infinity()}));
      list.push_back(hostile(op, dtype, "nan", {std::numeric_limits<float>::quiet_NaN()}));
      list.push_back(hostile(op, dtype, "large", {65504.0f, -65504.0f}));
    }
    add(list, op, DType::f32, 2, 50000, plain);
    // So many rows that a device's blocks come to several: all of one dtype, together and apart, and very long ones.
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      const std::int64_t n = dtype == DType::f32 ? 260 : 520;
      add(list, op, dtype, 4300, n, {"_residual_own_weight", true, 0, true, 0.0f, 1.0f, dtype});
      add(list, op, dtype, 2150, n, {"_residual_own_weight_apart", true, 8, true, 0.0f, 1.0f, dtype});
    }
    add(list, op, DType::f32, 530, 8192, plain);
    // Weight and bias of x's dtype, with and without a residual, which a device has kernels of its own for: rows of less than a warp, of
    // an odd number of vectors, of several vectors a thread, the longest and one longer; rows apart by whole vectors and by less, and a
    // mean far from the deviation.
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
      for (const bool with : {true, false}) {
        const std::int64_t width = dtype == DType::f32 ? 4 : 8;
        const auto own = [&](const char* suffix, int apart, float mean) {
          return Form{fmt::format("{}_own_weight{}", with ? "_residual" : "", suffix),
                      with,
                      apart,
                      true,
                      mean,
                      1.0f,
                      dtype};
        };
        for (const std::int64_t vectors : {1, 5, 67, 512, 2048, 2049})
          add(list, op, dtype, 5, vectors * width, own("", 0, 0.0f));
        add(list, op, dtype, 2100, 8 * width, own("", 0, 0.0f));
        add(list, op, dtype, 7, 33 * width, own("_apart_16", 16, 0.0f));
        add(list, op, dtype, 7, 33 * width, own("_apart_3", 3, 0.0f));
        if (dtype == DType::f32) add(list, op, dtype, 9, 96, own("_mean100", 0, 100.0f));
      }
  }
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const DType weight : {DType::f32, dtype})
      add(list, Op::rms_norm, dtype, 3, 333,
          {weight == dtype ? "_offset" : "_offset_f32_weight", true, 0, true, 0.0f, 1.0f, weight, 1.0f});
  add(list, Op::layer_norm, DType::f32, 5, 576, no_bias);
  add(list, Op::layer_norm, DType::f32, 5, 576, offset);
}

void add_norm_device_cases(CaseList& list) {
  const Form plain{"", false, 0, true, 0.0f, 1.0f, DType::bf16},
      residual{"_residual", true, 0, true, 0.0f, 1.0f, DType::bf16};
  for (const Op op : {Op::rms_norm, Op::layer_norm}) {
    for (const auto& [rows, n] : {std::pair{16384, 4096}, {8192, 1024}, {8192, 128}, {64, 4096}, {1, 4096}}) {
      add(list, op, DType::bf16, rows, n, plain, /*bench=*/true);
      add(list, op, DType::bf16, rows, n, residual, /*bench=*/true);
    }
    add(list, op, DType::f32, 8192, 4096, plain, /*bench=*/true);
    for (const DType dtype : {DType::f16, DType::f32})
      add(list, op, dtype, 8192, 4096, {"_residual", true, 0, true, 0.0f, 1.0f, dtype}, /*bench=*/true);
    add(list, op, DType::bf16, 2048, 16384, residual, /*bench=*/true);
    add(list, op, DType::bf16, 2048, 16384, plain, /*bench=*/true);
  }
}

}  // namespace kf::cases
