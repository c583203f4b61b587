// Scales beside a weight of integers or 8-bit floats.
#pragma once

#include "kf/op.h"

namespace kf {

// Whether a weight of this dtype is read with scales: int4, i8, fp8_e4m3 and fp8_e5m2.
inline bool needs_scales(DType t) {
  return t == DType::int4 || t == DType::i8 || t == DType::fp8_e4m3 || t == DType::fp8_e5m2;
}

// How a weight [out, in] of such a dtype, its rows contiguous, is read:
//   w[n, k] = (q[n, k] - zeros[n, g]) * scales[n, g],   g = k / group_size
// q is what the weight holds: of int4 two's complement, -8 to 7, two a byte, the low half first (`in` is even). Rows of
// fp8 may share scales: one serves the whole weight, or 128 rows with groups of 128.
struct Quantization {
  // [out, ceil(in / group_size)]; fp8 also [1, 1] and [ceil(out / 128), ceil(in / 128)]; f32, f16, bf16
  TensorView scales;
  // Like scales, i8, optional; none for fp8. A byte also for int4: an unsigned zero of 16, which GPTQ's files reach, is
  // 8 for signed values and no nibble.
  TensorView zeros;
  std::int64_t group_size = 0;  // elements of a row to a scale: 32, 64 or a multiple of 128; 0: the row

  // By the operand's name followed by _scales, _zeros and _group_size: a rule that names an operand means these too.
  void visit(FieldVisitor& v, const char* scales_name, const char* zeros_name, const char* group_size_name) {
    v.opt_weight(scales_name, scales);
    v.opt_weight(zeros_name, zeros);
    v.attr(group_size_name, group_size);
  }
};

}  // namespace kf
