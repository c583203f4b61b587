// What becomes of a row of scores before its softmax: the soft cap, and what slopes and masks add.
#if defined(KF_CPU_ATTENTION_SCORE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_SCORE_ROWS_INL_H_
#undef KF_CPU_ATTENTION_SCORE_ROWS_INL_H_
#else
#define KF_CPU_ATTENTION_SCORE_ROWS_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <limits>

#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::All;
using kf::HWY_NAMESPACE::Exp;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::First;
using kf::HWY_NAMESPACE::ForEachVector;
using kf::HWY_NAMESPACE::LoadF32;
using kf::HWY_NAMESPACE::StoreF32;

// row *= factor
HWY_INLINE void ScaleRow(float* row, std::int64_t n, float factor) {
  const F32Tag d;
  const auto f = hn::Set(d, factor);
  ForEachVector(n, [&](std::int64_t i, auto extent)
                       HWY_ATTR { StoreF32(d, hn::Mul(f, LoadF32(d, row + i, extent)), row + i, extent); });
}

// row = cap * tanh(row / cap), with tanh x = 1 - 2 / (e^2x + 1): within 4 u of the cap.
HWY_INLINE void CapRow(float* row, std::int64_t n, float cap) {
  const F32Tag d;
  const auto one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f), factor = hn::Set(d, cap),
             inverse = hn::Set(d, 2.0f / cap);
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto e = Exp(d, hn::Mul(LoadF32(d, row + i, extent), inverse));
    const auto tanh = hn::Sub(one, hn::Div(two, hn::Add(e, one)));
    StoreF32(d, hn::Mul(factor, tanh), row + i, extent);
  });
}

// row[i] -= slope * |distance - i|
HWY_INLINE void AddSlope(float* row, std::int64_t n, float slope, std::int64_t distance) {
  const F32Tag d;
  const auto factor = hn::Set(d, slope);
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto steps = hn::Abs(hn::Sub(hn::Set(d, static_cast<float>(distance - i)), hn::Iota(d, 0)));
    StoreF32(d, hn::NegMulAdd(factor, steps, LoadF32(d, row + i, extent)), row + i, extent);
  });
}

// row += factor * mask
template <class T>
HWY_INLINE void AddMask(float* row, std::int64_t n, const T* mask, float factor) {
  const F32Tag d;
  const auto f = hn::Set(d, factor);
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    StoreF32(d, hn::MulAdd(f, LoadF32(d, mask + i, extent), LoadF32(d, row + i, extent)), row + i, extent);
  });
}

using BoolTag = hn::Rebind<std::uint8_t, F32Tag>;
HWY_INLINE hn::Vec<BoolTag> LoadBools(const std::uint8_t* p, All) { return hn::LoadU(BoolTag(), p); }
HWY_INLINE hn::Vec<BoolTag> LoadBools(const std::uint8_t* p, First first) {
  HWY_ALIGN std::uint8_t buffer[hn::MaxLanes(BoolTag())] = {};
  std::memcpy(buffer, p, first.count);
  return hn::Load(BoolTag(), buffer);
}

// row = -inf where the mask is false
HWY_INLINE void SelectMask(float* row, std::int64_t n, const std::uint8_t* mask) {
  const F32Tag d;
  const hn::RebindToSigned<F32Tag> di;
  const auto forbidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto is_false = hn::Eq(hn::PromoteTo(di, LoadBools(mask + i, extent)), hn::Zero(di));
    const auto scores = LoadF32(d, row + i, extent);
    StoreF32(d, hn::IfThenElse(hn::RebindMask(d, is_false), forbidden, scores), row + i, extent);
  });
}

// Either, at an element offset of a mask's; `factor` times what is added.
HWY_INLINE void ApplyMask(float* row, std::int64_t n, const TensorView& mask, std::int64_t offset,
                          float factor) {
  if (mask.dtype == DType::boolean) return SelectMask(row, n, mask.as<std::uint8_t>() + offset);
  with_activation_type(
      mask.dtype, [&]<class T>(std::type_identity<T>) { AddMask(row, n, mask.as<T>() + offset, factor); });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
