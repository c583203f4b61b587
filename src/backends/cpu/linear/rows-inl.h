// Packed rows of A: x in f32 with the prologue applied.
#if defined(KF_CPU_LINEAR_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_ROWS_INL_H_
#undef KF_CPU_LINEAR_ROWS_INL_H_
#else
#define KF_CPU_LINEAR_ROWS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Calls f(address in the packed row, column, All or First) for every vector of the row; only the last of a
// block may be less than whole. A packed row has room for whole vectors.
template <class F>
HWY_INLINE void ForEachPackedVector(const PackedRows& packed, std::int64_t row, const F& f) {
  for (std::int64_t b = 0; b < packed.blocks.count; ++b) {
    float* const at = packed.at(b, row);
    const std::int64_t begin = b * packed.blocks.depth;
    const std::int64_t depth = std::min(packed.blocks.in - begin, packed.blocks.depth);
    ForEachVector(depth, [&](std::int64_t k, auto part) HWY_ATTR { f(at + k, begin + k, part); });
  }
}

HWY_INLINE F32Vec KeepPart(F32Vec v, All) { return v; }
HWY_INLINE F32Vec KeepPart(F32Vec v, First first) {
  return hn::IfThenElseZero(hn::FirstN(F32Tag(), first.count), v);
}

// Sum over the row of term(value).
template <class Term>
HWY_INLINE float SumRow(const PackedRows& packed, std::int64_t row, const Term& term) {
  const F32Tag d;
  auto sum = hn::Zero(d);
  ForEachPackedVector(packed, row, [&](const float* at, std::int64_t, auto part) HWY_ATTR {
    sum = hn::Add(sum, KeepPart(term(hn::LoadU(d, at)), part));
  });
  return ReduceSum(d, sum);
}

HWY_INLINE void NormalizeRow(const Prologue& prologue, const PackedRows& packed, std::int64_t row) {
  const F32Tag d;
  const float count = static_cast<float>(packed.blocks.in);
  const bool layer = prologue.norm == NormKind::layer;
  const float mean = layer ? SumRow(packed, row, [](auto v) HWY_ATTR { return v; }) / count : 0.0f;
  const auto center = hn::Set(d, mean);
  const float squares = SumRow(packed, row, [&](auto v) HWY_ATTR {
    const auto c = hn::Sub(v, center);
    return hn::Mul(c, c);
  });
  const auto scale = hn::Set(d, 1.0f / std::sqrt(squares / count + prologue.eps));
  const TensorView &weight = prologue.norm_weight, &bias = prologue.norm_bias;
  ForEachPackedVector(packed, row, [&](float* at, std::int64_t k, auto part) HWY_ATTR {
    const auto v = hn::Mul(hn::Mul(hn::Sub(hn::LoadU(d, at), center), scale), LoadOperand(weight, k, part));
    hn::StoreU(bias.present() ? hn::Add(v, LoadOperand(bias, k, part)) : v, d, at);
  });
}

template <class T>
HWY_INLINE void PackRow(const TensorView& x, const Prologue& prologue, std::int64_t x_row,
                        const PackedRows& packed, std::int64_t row) {
  const F32Tag d;
  const T* const from = x.as<const T>() + x_row * x.stride(0);
  ForEachPackedVector(packed, row, [&](float* at, std::int64_t k, auto part) HWY_ATTR {
    const auto v = LoadF32(d, from + k, part);
    hn::StoreU(prologue.activation == Activation::none ? v : Activated(prologue.activation, v), d, at);
  });
  if (prologue.norm != NormKind::none) NormalizeRow(prologue, packed, row);
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
