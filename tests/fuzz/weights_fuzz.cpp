// Any bytes as a low-bit weight: every kernel of a linear layer decodes them as the reference does, within rounding.

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kf/kf.h"
#include "kf/quantize.h"

namespace {

using kf::DType;
using kf::Tensor;
using kf::TensorView;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

void fill(FuzzedDataProvider& in, const TensorView& t) {
  auto* const to = t.as<std::uint8_t>();
  const std::vector<std::uint8_t> bytes = in.ConsumeBytes<std::uint8_t>(t.nbytes());
  for (std::size_t i = 0; i < t.nbytes(); ++i) to[i] = bytes.empty() ? 0 : bytes[i % bytes.size()];
}

constexpr DType kFormats[] = {DType::q4_0, DType::q4_1, DType::q5_0, DType::q8_0,     DType::q4_k,
                              DType::q6_k, DType::int4, DType::i8,   DType::fp8_e4m3, DType::fp8_e5m2};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider in(bytes, size);
  const DType format = kFormats[in.ConsumeIntegralInRange<std::size_t>(0, std::size(kFormats) - 1)];
  const bool scaled = kf::needs_scales(format);
  const std::int64_t unit = scaled ? 32 : kf::dtype_info(format).block_elems;
  const std::int64_t width = unit * in.ConsumeIntegralInRange(1, 3), rows = in.ConsumeIntegralInRange(1, 40),
                     tokens = in.ConsumeIntegralInRange(1, 20);
  Tensor weight(format, {rows, width}), scales(DType::f32, {rows, (width + 31) / 32}),
      zeros(DType::i8, {rows, (width + 31) / 32}), x(DType::f32, {tokens, width});
  kf::LinearParams p;
  p.x = x;
  p.weight = weight;
  if (scaled) {
    p.weight_quantization = {scales, {}, 32};
    for (std::int64_t i = 0; i < scales.view().numel(); ++i)
      scales.view().as<float>()[i] = static_cast<float>(in.ConsumeIntegralInRange(-100, 100)) / 64.0f;
    if ((format == DType::int4 || format == DType::i8) && in.ConsumeBool()) {
      fill(in, zeros);
      p.weight_quantization.zeros = zeros;
    }
  }
  for (std::int64_t i = 0; i < x.view().numel(); ++i)
    x.view().as<float>()[i] = static_cast<float>((i * 37) % 61 - 30) / 16.0f;
  fill(in, weight);

  // What is multiplied, from the reference: a linear layer over the identity's rows would be as slow.
  Tensor dense(DType::f32, {rows, width});
  if (scaled) {
    kf::dequantize(weight, p.weight_quantization, dense);
  } else {
    kf::DequantizeParams d;
    d.x = weight;
    d.out = dense;
    kf::default_dispatcher().run(d, {.families = kf::kReference});
  }
  Tensor expected(DType::f32, {tokens, rows});
  p.out = expected;
  kf::default_dispatcher().run(p, {.families = kf::kReference});
  for (const kf::Kernel* k : kf::default_dispatcher().kernels(kf::Op::linear)) {
    if (k->families == kf::kReference) continue;
    Tensor got(DType::f32, {tokens, rows});
    p.out = got;
    try {
      kf::default_dispatcher().run(p, {.families = ~0u, .kernel = k->name});
    } catch (const kf::Error& e) {
      if (e.code() == kf::ErrorCode::not_implemented) continue;  // a row that does not take this call
      fail(k->name + ": " + e.what());
    }
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t r = 0; r < rows; ++r) {
        double magnitudes = 0;
        for (std::int64_t i = 0; i < width; ++i)
          magnitudes +=
              std::abs(double{x.view().as<float>()[t * width + i]} * dense.view().as<float>()[r * width + i]);
        const double a = got.view().as<float>()[t * rows + r], b = expected.view().as<float>()[t * rows + r];
        // Where magnitudes come near the largest float, one order of the sum overflows and another does not.
        if (!(magnitudes < 1e37)) continue;
        if (!(std::abs(a - b) <= 1e-5 * magnitudes + 1e-30))
          fail(k->name + ": " + std::to_string(a) + ", reference " + std::to_string(b));
      }
  }
  return 0;
}
