#include "backends/cuda/device/quantized_rows.cuh"
#include "backends/cuda/elementwise/quantized.h"

namespace kf::cuda {
Support quantize_supports(const QuantizeParams& p, const PlanContext&) {
  return supports_rows(p.quantization, p.x);
}
void quantize_run(const QuantizeParams& p, const RunContext& ctx) {
  run_rows<RowSource::plain>({}, p.x, {}, {}, {}, {}, p.out, p.quantization, ctx);
}

Support activation_quantized_supports(const ActivationParams& p, const PlanContext&) {
  return supports_rows(p.quantization, p.x);
}
void activation_quantized_run(const ActivationParams& p, const RunContext& ctx) {
  QuantizedArgs a{};
  a.kind = p.kind;
  run_rows<RowSource::activation>(a, p.x, {}, {}, {}, {}, p.out, p.quantization, ctx);
}

Support gated_activation_quantized_supports(const GatedActivationParams& p, const PlanContext&) {
  return supports_rows(p.quantization, p.gate);
}
void gated_activation_quantized_run(const GatedActivationParams& p, const RunContext& ctx) {
  QuantizedArgs a{};
  a.kind = p.kind;
  run_rows<RowSource::gated>(a, p.gate, p.up, {}, {}, {}, p.out, p.quantization, ctx);
}

}  // namespace kf::cuda
