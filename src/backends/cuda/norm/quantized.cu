#include "backends/cuda/device/quantized_rows.cuh"
#include "backends/cuda/norm/quantized.h"

namespace kf::cuda {
namespace {

template <class P>
QuantizedArgs norm_args(const P& p) {
  QuantizedArgs a{};
  a.weight = p.weight.data;
  a.weight_dtype = p.weight.dtype;
  a.eps = p.eps;
  return a;
}

}  // namespace

Support rms_norm_quantized_supports(const RmsNormParams& p, const PlanContext&) {
  return supports_rows(p.quantization, p.x);
}
void rms_norm_quantized_run(const RmsNormParams& p, const RunContext& ctx) {
  QuantizedArgs a = norm_args(p);
  a.weight_offset = p.weight_offset;
  run_rows<RowSource::rms_norm>(a, p.x, p.residual, p.residual_out, p.weight, {}, p.out, p.quantization, ctx);
}

Support layer_norm_quantized_supports(const LayerNormParams& p, const PlanContext&) {
  return supports_rows(p.quantization, p.x);
}
void layer_norm_quantized_run(const LayerNormParams& p, const RunContext& ctx) {
  QuantizedArgs a = norm_args(p);
  a.bias = data_or_null(p.bias);
  a.bias_dtype = p.bias.dtype;
  run_rows<RowSource::layer_norm>(a, p.x, p.residual, p.residual_out, p.weight, p.bias, p.out, p.quantization,
                                  ctx);
}

}  // namespace kf::cuda
