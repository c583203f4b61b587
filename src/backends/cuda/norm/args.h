// What the norms' kernels are given.
#pragma once

#include <cstdint>

#include "backends/cuda/supports.h"
#include "core/rows.h"
#include "kf/ops/norm.h"

namespace kf::cuda {

struct NormArgs {
  const void *x, *residual, *weight, *bias;  // residual, bias: or null
  void *out, *residual_out;                  // residual_out: or null
  RowOffsets x_rows, residual_rows, out_rows, residual_out_rows;
  DType weight_dtype, bias_dtype;
  std::int64_t rows;
  int n;
  float eps, weight_offset;
};

// What the two norms do not have in common.
inline TensorView bias_of(const RmsNormParams&) { return {}; }
inline TensorView bias_of(const LayerNormParams& p) { return p.bias; }
inline float weight_offset_of(const RmsNormParams& p) { return p.weight_offset; }
inline float weight_offset_of(const LayerNormParams&) { return 0.0f; }

template <class P>
NormArgs norm_args(const P& p) {
  const TensorView bias = bias_of(p);
  NormArgs a{};
  a.x = p.x.data;
  a.residual = data_or_null(p.residual);
  a.weight = p.weight.data;
  a.bias = data_or_null(bias);
  a.out = p.out.data;
  a.residual_out = data_or_null(p.residual_out);
  a.x_rows = RowOffsets(p.x);
  a.residual_rows = RowOffsets(p.residual);
  a.out_rows = RowOffsets(p.out);
  a.residual_out_rows = RowOffsets(p.residual_out);
  a.weight_dtype = p.weight.dtype;
  a.bias_dtype = bias.dtype;
  a.rows = num_rows(p.x);
  a.n = static_cast<int>(p.x.dim(-1));
  a.eps = p.eps;
  a.weight_offset = weight_offset_of(p);
  return a;
}

}  // namespace kf::cuda
