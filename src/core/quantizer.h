// How values become codes of int4, i8 or fp8 with a scale beside them: kf::quantize() and the kernels that write caches.
#pragma once

#include <cstdint>

#include "kf/ops/quantization.h"

namespace kf {

// The ends of finite values that share a scale, and 0.
struct QuantizationRange {
  float low = 0, high = 0;

  void add(float x);
};

// How values that share a scale become codes: x / scale, rounded, plus zero, within the dtype's ends.
struct Quantizer {
  DType dtype = DType::i8;
  float scale = 1, zero = 0;

  // Stores the scale of such a range, and its zero, at these offsets; values are divided by the scale as it is stored.
  static Quantizer store(DType dtype, const QuantizationRange& range, const Quantization& q,
                         std::int64_t scale_at, std::int64_t zero_at);
  // As they are stored.
  static Quantizer load(DType dtype, const Quantization& q, std::int64_t scale_at, std::int64_t zero_at);

  float code(float x) const;  // of fp8 not yet rounded
  void put(const TensorView& data, std::int64_t offset, float x) const;
};
// The least and the largest code of int4 or i8; of fp8 the ends of its values.
struct CodeEnds {
  float lowest, highest;
};
CodeEnds code_ends(DType dtype);

}  // namespace kf
