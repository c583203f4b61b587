#include "backends/cpu/linear/small/token.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/small/token.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/operand-inl.h"
#include "backends/cpu/simd/activation-inl.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
using kf::HWY_NAMESPACE::BlockedSum;
using kf::HWY_NAMESPACE::Within;

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

// The norm of a row in place.
void NormalizeToken(const Prologue& prologue, float* row, std::int64_t n) {
  const F32Tag d;
  const double count = static_cast<double>(n);
  const bool layer = prologue.norm == NormKind::layer;
  const double sum = layer ? BlockedSum(n, [&](F32Vec acc, std::int64_t i, auto extent)
                                               HWY_ATTR { return hn::Add(acc, LoadF32(d, row + i, extent)); })
                           : 0.0;
  const F32Vec mean = hn::Set(d, static_cast<float>(sum / count));
  const double squares = BlockedSum(n, [&](F32Vec acc, std::int64_t i, auto extent) HWY_ATTR {
    const F32Vec v = Within(d, hn::Sub(LoadF32(d, row + i, extent), mean), extent);
    return hn::MulAdd(v, v, acc);
  });
  const F32Vec scale = hn::Set(d, static_cast<float>(1.0 / std::sqrt(squares / count + prologue.eps)));
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    F32Vec v = hn::Mul(hn::Mul(hn::Sub(LoadF32(d, row + i, extent), mean), scale),
                       LoadOperand(prologue.norm_weight, i, extent));
    if (prologue.norm_bias.present()) v = hn::Add(v, LoadOperand(prologue.norm_bias, i, extent));
    StoreF32(d, v, row + i, extent);
  });
}

void LoadToken(const TensorView& x, const Prologue& prologue, const SmallInput& input, int t) {
  const F32Tag d;
  float* row = input.token(t);
  ForEachVector(input.in, [&](std::int64_t i, auto extent) HWY_ATTR {
    const F32Vec v = LoadOperand(x, t * x.stride(0) + i, extent);
    StoreF32(d, Activated(prologue.activation, v), row + i, extent);
  });
  if (prologue.norm != NormKind::none) NormalizeToken(prologue, row, input.in);
  std::fill(row + input.in, row + input.value_stride, 0.0f);
}

void StoreSums(const SmallEpilogue& e, const float* sums, std::size_t sums_stride, int num_tokens,
               std::int64_t begin, std::int64_t count) {
  const F32Tag d;
  for (int t = 0; t < num_tokens; ++t, sums += sums_stride)
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

void prepare_token(const TensorView& x, const Prologue& prologue, const SmallInput& input, int t) {
  HWY_DYNAMIC_DISPATCH(LoadToken)(x, prologue, input, t);
  if (input.nibbles) fill_nibbles(input, t, 0, input.in);
}

void store_sums(const SmallEpilogue& epilogue, const float* sums, std::size_t sums_stride, int num_tokens,
                std::int64_t begin, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(StoreSums)(epilogue, sums, sums_stride, num_tokens, begin, count);
}

void gate_sums(Activation activation, const float* gate, const float* up, std::int64_t count, float* hidden) {
  HWY_DYNAMIC_DISPATCH(GateSums)(activation, gate, up, count, hidden);
}

}  // namespace kf::cpu
#endif
