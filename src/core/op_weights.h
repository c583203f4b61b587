// The weights of the linear family's ops: each with its scales and its mask.
#pragma once

#include <cstdint>

#include "core/sparse.h"
#include "kf/ops/linear.h"

namespace kf {

template <class P>  // LinearParams or LmHeadArgmaxParams
Weight weight_of(const P& p) {
  return {p.weight, p.weight_quantization, p.weight_sparsity, p.x.dim(1)};
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
  std::int64_t intermediate() const { return gate.layout.dim(0); }
};

}  // namespace kf
