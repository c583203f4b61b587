// Weights, and keys and values, with scales beside them, made of floats, and back.
#pragma once

#include "kf/ops/quantization.h"

namespace kf {

// Rounds `values` [rows, n] (f32, f16 or bf16) to `data` [rows, n] (int4, i8, fp8_e4m3 or fp8_e5m2) and fills the scales
// and zeros of `q`, whose shapes and group size say what shares a scale. All are on the host, their rows contiguous.
//   integers without zeros   scale = max |x| / 7 (i8: 127),  q = x / scale
//   integers with zeros      scale = (max(x, 0) - min(x, 0)) / 15 (255),  zero = -8 (-128) - min(x, 0) / scale,
//                            q = x / scale + zero
//   fp8                      scale = max |x| / 448 (e5m2: 57344),  q = x / scale
// rounded to nearest even; x is divided by the scale as it is stored. What is not finite takes no part in a scale: an
// infinity becomes the nearest end, a NaN 0 (of fp8 a NaN).
void quantize(const TensorView& values, const TensorView& data, const Quantization& q);

// values = (data - zeros) * scales; `values` is f32, f16 or bf16.
void dequantize(const TensorView& data, const Quantization& q, const TensorView& values);

// The same for keys and values of rank 3 or 4, in any form that attention takes: what shares a scale is said by the shape
// of the scales (kf/ops/attention.h). Of a page pool whole pages are quantized; append_kv does tokens.
void quantize_kv(const TensorView& values, const TensorView& data, const Quantization& q);
void dequantize_kv(const TensorView& data, const Quantization& q, const TensorView& values);

}  // namespace kf
