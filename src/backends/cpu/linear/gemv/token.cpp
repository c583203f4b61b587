#include "backends/cpu/linear/gemv/token.h"

#include <algorithm>

#include "backends/cpu/linear/gemv/int8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemv/token.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/linear/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
template <class Part>
HWY_INLINE void StoreOperand(F32Vec v, const TensorView& t, std::int64_t offset, Part part) {
  const F32Tag d;
  switch (t.dtype) {
    case DType::f16:
      return StoreF32(d, v, t.as<F16>() + offset, part);
    case DType::bf16:
      return StoreF32(d, v, t.as<Bf16>() + offset, part);
    default:
      return StoreF32(d, v, t.as<float>() + offset, part);
  }
}

void LoadToken(const TensorView& x, const Prologue& prologue, const GemvInput& input, int t) {
  const F32Tag d;
  float* const to = input.token(t);
  const InputRow row = RowOf(x, prologue, t);
  ForEachVector(input.in,
                [&](std::int64_t i, auto part) HWY_ATTR { StoreF32(d, row.Get(i, part), to + i, part); });
  std::fill(to + input.in, to + input.value_stride, 0.0f);
}

void StoreSums(const GemvEpilogue& e, const float* sums, std::size_t sums_stride, int first, int num_tokens,
               std::int64_t begin, std::int64_t count) {
  const F32Tag d;
  for (int t = first; t < first + num_tokens; ++t, sums += sums_stride)
    ForEachVector(count, [&](std::int64_t i, auto extent) HWY_ATTR {
      const std::int64_t column = begin + i;
      F32Vec v = LoadF32(d, sums + i, extent);
      if (e.bias.present()) v = hn::Add(v, LoadOperand(e.bias, column, extent));
      v = Activated(e.activation, v);
      if (e.residual.present())
        v = hn::Add(v, LoadOperand(e.residual, t * e.residual.stride(0) + column, extent));
      StoreOperand(v, e.out, t * e.out.stride(0) + column, extent);
    });
}

void GateSums(Activation activation, const float* gate, const float* up, std::int64_t count, float* hidden) {
  const F32Tag d;
  ForEachVector(count, [&](std::int64_t i, auto extent) HWY_ATTR {
    const F32Vec g = Activated(activation, LoadF32(d, gate + i, extent));
    StoreF32(d, hn::Mul(g, LoadF32(d, up + i, extent)), hidden + i, extent);
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(LoadToken);
HWY_EXPORT(StoreSums);
HWY_EXPORT(GateSums);

void prepare_token(const TensorView& x, const Prologue& prologue, const GemvInput& input, int t) {
  HWY_DYNAMIC_DISPATCH(LoadToken)(x, prologue, input, t);
  if (input.codes.rows != nullptr) return quantize_token(input, t);
  fill_nibbles(input, t, 0, input.in);
}

void store_sums(const GemvEpilogue& epilogue, const float* sums, std::size_t sums_stride, int first,
                int num_tokens, std::int64_t begin, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(StoreSums)(epilogue, sums, sums_stride, first, num_tokens, begin, count);
}

void gate_sums(Activation activation, const float* gate, const float* up, std::int64_t count, float* hidden) {
  HWY_DYNAMIC_DISPATCH(GateSums)(activation, gate, up, count, hidden);
}

}  // namespace kf::cpu
#endif
