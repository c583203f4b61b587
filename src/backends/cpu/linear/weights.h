// The weights of the linear family's ops as kernels read them.
#pragma once

#include "core/sparse.h"
#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cpu {

template <class P>  // LinearParams or LmHeadArgmaxParams
Weight weight_of(const P& p) {
  return {p.weight, p.weight_quantization, p.weight_sparsity, p.x.dim(1)};
}
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

struct QkvWeights {
  Weight q, k, v;
  explicit QkvWeights(const QkvLinearParams& p)
      : q(p.q_weight, p.q_weight_quantization, p.q_weight_sparsity, p.x.dim(1)),
        k(p.k_weight, p.k_weight_quantization, p.k_weight_sparsity, p.x.dim(1)),
        v(p.v_weight, p.v_weight_quantization, p.v_weight_sparsity, p.x.dim(1)) {}
};
struct FfnWeights {
  Weight gate, up, down;
  explicit FfnWeights(const GatedFfnParams& p)
      : gate(p.gate_weight, p.gate_weight_quantization, p.gate_weight_sparsity, p.x.dim(1)),
        up(p.up_weight, p.up_weight_quantization, p.up_weight_sparsity, p.x.dim(1)),
        down(p.down_weight, p.down_weight_quantization, p.down_weight_sparsity, gate.layout.dim(0)) {}
};

// For kernels that multiply x as it is.
template <class P>
Support full_precision(const P& p, const PlanContext&) {
  if (p.input_quantization == InputQuantization::none) return Support::yes();
  return Support::no("input_quantization int8: this kernel multiplies x unrounded");
}

}  // namespace kf::cpu
