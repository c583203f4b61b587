// Outputs in 8 bits, with a scale a row or one in all.
#pragma once

#include "kf/op.h"

namespace kf {

enum class CodeDType : std::uint8_t { none, i8, fp8_e4m3, fp8_e5m2 };
inline constexpr const char* kCodeDTypeNames[] = {"none", "i8", "fp8_e4m3", "fp8_e5m2"};
inline constexpr DType kCodeDTypes[] = {DType::f32, DType::i8, DType::fp8_e4m3, DType::fp8_e5m2};

// An op with this group writes its result y as 8-bit codes where out_dtype is not none:
//   out = y / scale, rounded to nearest even and kept within [-128, 127], +-448 (fp8_e4m3) or +-57344 (fp8_e5m2)
//   scale = static_scale, or for each row (a token) max |y| / 127, 448 or 57344, which is written to out_scales
// y is in f32, not rounded before. What is not finite takes no part in a scale: an infinity becomes the nearest end, a NaN
// 0 (in fp8 a NaN). A row whose scale is 0 is divided by 1.
struct OutputQuantization {
  TensorView static_scale = {};  // f32 [1], finite and > 0; optional
  TensorView scales = {};  // f32, the shape of `out` without its last dimension; not with a static scale
  CodeDType dtype = CodeDType::none;

  bool present() const { return dtype != CodeDType::none; }
  bool dynamic() const { return present() && !static_scale.present(); }
  DType code_dtype() const { return kCodeDTypes[static_cast<int>(dtype)]; }
  void visit(FieldVisitor& v) {
    v.opt_in("static_scale", static_scale);
    v.opt_out("out_scales", scales);
    v.choice("out_dtype", dtype, kCodeDTypeNames);
  }
};

}  // namespace kf
