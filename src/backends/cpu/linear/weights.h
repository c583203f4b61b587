// The weights of the linear family's ops as the CPU's kernels read them, beside core/op_weights.h.
#pragma once

#include "core/op_weights.h"
#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cpu {

// One adapter's matrix of those that Lora::a or Lora::b holds.
inline Weight adapter_weight(const TensorView& all, std::int64_t adapter) {
  TensorView t = all;
  if (all.rank == 3) {
    t = TensorView::contiguous(all.at(adapter * all.stride(0)), all.dtype, {all.dim(1), all.dim(2)},
                               all.device);
    t.strides[0] = all.stride(1);
    t.strides[1] = all.stride(2);
  }
  return {t, {}, {}, t.dim(1)};
}

// For kernels that multiply x as it is.
template <class P>
Support full_precision(const P& p, const PlanContext&) {
  if (p.input_quantization == InputQuantization::none) return Support::yes();
  return Support::no("input_quantization int8: this kernel multiplies x unrounded");
}

}  // namespace kf::cpu
