// Two passes: the largest magnitude that is finite, and the codes. With a static scale, the second alone.

#include "backends/cpu/elementwise/quantize_row.h"

#include <cstring>

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/elementwise/quantize_row.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/math-inl.h"
#include "backends/cpu/simd/pair-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

using CodeTag = hn::Rebind<std::uint8_t, F32Tag>;
using CodeVec = hn::Vec<CodeTag>;
using IntTag = hn::RebindToSigned<F32Tag>;

// The bits of |v|: comparisons of them hold for NaN on every target alike.
HWY_INLINE hn::Vec<IntTag> MagnitudeBits(F32Vec v) {
  const IntTag di;
  return hn::And(hn::BitCast(di, v), hn::Set(di, 0x7fffffff));
}

// Codes of values already divided by the scale.
struct I8Codes {
  static constexpr float kEnd = 127;
  static HWY_INLINE CodeVec Of(F32Tag d, F32Vec v) {
    const IntTag di;
    const auto is_nan = hn::Gt(MagnitudeBits(v), hn::Set(di, 0x7f800000));
    v = hn::IfThenZeroElse(hn::RebindMask(d, is_nan), Clamp(d, -128.0f, 127.0f, v));
    const hn::Rebind<std::int8_t, F32Tag> d8;
    return hn::BitCast(CodeTag(), hn::DemoteTo(d8, hn::NearestInt(v)));
  }
};

// The steps of f32_to_fp8 in core/half.h.
template <int kMantissa, int kBias, int kLargest>
struct Fp8Codes {
  static constexpr float kEnd = kMantissa == 3 ? 448 : 57344;
  static HWY_INLINE CodeVec Of(F32Tag d, F32Vec v) {
    constexpr int kShift = 23 - kMantissa;
    const IntTag di;
    const auto magnitude = MagnitudeBits(v);
    const auto unit = hn::Set(di, (151 - kBias - kMantissa) << 23);
    const auto denormal =
        hn::Sub(hn::BitCast(di, hn::Add(hn::BitCast(d, magnitude), hn::BitCast(d, unit))), unit);
    const auto odd = hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(di, 1));
    const auto to_round = hn::Sub(magnitude, hn::Set(di, ((127 - kBias) << 23) - ((1 << (kShift - 1)) - 1)));
    const auto normal = hn::ShiftRight<kShift>(hn::Add(to_round, odd));
    auto code = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, (128 - kBias) << 23)), denormal, normal);
    code = hn::Min(code, hn::Set(di, kLargest));
    code = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7f800000)), hn::Set(di, 0x7f), code);
    const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(di, v)), hn::Set(di, 0x80));
    return hn::DemoteTo(CodeTag(), hn::Or(code, sign));
  }
};
using E4m3Codes = Fp8Codes<3, 7, 0x7e>;
using E5m2Codes = Fp8Codes<2, 15, 0x7b>;

template <class T>
float LargestFinite(const T* x, std::int64_t n) {
  const F32Tag d;
  const IntTag di;
  const auto finite = [&](auto v) HWY_ATTR {
    const auto bits = MagnitudeBits(v);
    return hn::BitCast(d, hn::IfThenElseZero(hn::Lt(bits, hn::Set(di, 0x7f800000)), bits));
  };
  F32Pair largest = PairOf(hn::Zero(d), hn::Zero(d));
  ForEachPair(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto v = Each(finite, LoadF32(d, x + i, extent));
    if constexpr (std::is_same_v<decltype(extent), Two>) {
      largest = PairOf(hn::Max(FirstOf(largest), FirstOf(v)), hn::Max(SecondOf(largest), SecondOf(v)));
    } else {  // lanes beyond the first are zero
      SetFirst(largest, hn::Max(FirstOf(largest), v));
    }
  });
  return ReduceMax(d, hn::Max(FirstOf(largest), SecondOf(largest)));
}

template <class Codes, class T>
float Quantize(const T* x, std::uint8_t* out, std::int64_t n, float static_scale) {
  const F32Tag d;
  const float scale = static_scale != 0 ? static_scale : LargestFinite(x, n) / Codes::kEnd;
  const auto divisor = hn::Set(d, scale == 0 ? 1.0f : scale);
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto codes = Codes::Of(d, hn::Div(LoadF32(d, x + i, extent), divisor));
    if constexpr (std::is_same_v<decltype(extent), All>) {
      hn::StoreU(codes, CodeTag(), out + i);
    } else {
      HWY_ALIGN std::uint8_t buffer[hn::MaxLanes(CodeTag())];
      hn::StoreU(codes, CodeTag(), buffer);
      std::memcpy(out + i, buffer, extent.count);
    }
  });
  return scale;
}

template <class Codes>
float QuantizeAny(DType dtype, const void* x, std::uint8_t* out, std::int64_t n, float static_scale) {
  return with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    return Quantize<Codes>(static_cast<const T*>(x), out, n, static_scale);
  });
}

float QuantizeRow(DType dtype, const void* x, DType codes, void* out, std::int64_t n, float static_scale) {
  auto* const to = static_cast<std::uint8_t*>(out);
  if (codes == DType::i8) return QuantizeAny<I8Codes>(dtype, x, to, n, static_scale);
  if (codes == DType::fp8_e4m3) return QuantizeAny<E4m3Codes>(dtype, x, to, n, static_scale);
  return QuantizeAny<E5m2Codes>(dtype, x, to, n, static_scale);
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(QuantizeRow);

float cpu::quantize_row(DType dtype, const void* x, DType codes, void* out, std::int64_t n,
                        float static_scale) {
  return HWY_DYNAMIC_DISPATCH(QuantizeRow)(dtype, x, codes, out, n, static_scale);
}

}  // namespace kf
#endif
