// Vectors of operands whose dtype, and of activations whose kind, is known at run time only: a predicted
// branch is cheap next to the sums that they are combined with.
#if defined(KF_CPU_LINEAR_OPERAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_OPERAND_INL_H_
#undef KF_CPU_LINEAR_OPERAND_INL_H_
#else
#define KF_CPU_LINEAR_OPERAND_INL_H_
#endif

#include <cstdint>

#include "backends/cpu/simd/activation-inl.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"
#include "hwy/highway.h"
#include "kf/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::Activate;
using kf::HWY_NAMESPACE::All;
using kf::HWY_NAMESPACE::F16ToF32;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::F32Vec;
using kf::HWY_NAMESPACE::First;
using kf::HWY_NAMESPACE::ForEachVector;
using kf::HWY_NAMESPACE::LoadF32;
using kf::HWY_NAMESPACE::ReduceSum;
using kf::HWY_NAMESPACE::StoreF32;

// Elements from `offset` on: a vector, or its first ones and zeros.
template <class Part>
HWY_INLINE F32Vec LoadOperand(const TensorView& t, std::int64_t offset, Part part) {
  const F32Tag d;
  switch (t.dtype) {
    case DType::f16:
      return LoadF32(d, t.as<const F16>() + offset, part);
    case DType::bf16:
      return LoadF32(d, t.as<const Bf16>() + offset, part);
    default:
      return LoadF32(d, t.as<const float>() + offset, part);
  }
}

HWY_INLINE F32Vec Activated(Activation kind, F32Vec v) {
  const F32Tag d;
  switch (kind) {
    case Activation::silu:
      return Activate<Activation::silu>(d, v);
    case Activation::gelu:
      return Activate<Activation::gelu>(d, v);
    case Activation::gelu_tanh:
      return Activate<Activation::gelu_tanh>(d, v);
    case Activation::relu:
      return Activate<Activation::relu>(d, v);
    case Activation::none:
      break;
  }
  return v;
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
