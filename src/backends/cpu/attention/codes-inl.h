// Elements of keys and values in registers, codes of quantized ones among them.
#if defined(KF_CPU_ATTENTION_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_CODES_INL_H_
#undef KF_CPU_ATTENTION_CODES_INL_H_
#else
#define KF_CPU_ATTENTION_CODES_INL_H_
#endif

#include <cstring>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/kv_source.h"
#include "backends/cpu/linear/quantized-inl.h"
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F16ToF32;
using kf::HWY_NAMESPACE::ForEachVector;
using kf::HWY_NAMESPACE::LoadF32;

// What LoadElements() leaves out of an element: its scale is multiplied by it.
template <class T>
inline constexpr float kUnit = 1.0f;
template <DType kType>
inline constexpr float kUnit<Fp8Code<kType>> = kFp8Unit<kType>;

template <class D, class T>
HWY_INLINE hn::Vec<D> LoadElements(D d, const T* p) {
  return LoadF32(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const Int8Code* p) {
  const hn::Rebind<std::int8_t, D> d8;
  const hn::RebindToSigned<D> di;
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const std::int8_t*>(p))));
}

template <class D, DType kType>
HWY_INLINE hn::Vec<D> LoadElements(D d, const Fp8Code<kType>* p) {
  const hn::Rebind<std::uint8_t, D> d8;
  const hn::Rebind<std::uint16_t, D> d16;
  const auto code = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const std::uint8_t*>(p)));
  return F16ToF32(d, Fp8ToF16<kType>(d16, code));
}

// A word of up to eight codes to all lanes, then each lane's own to its top: an arithmetic shift brings it down with its
// sign.
template <class D>
HWY_INLINE hn::Vec<D> LoadElements(D d, const Int4Codes* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  constexpr std::size_t kBytes = hn::MaxLanes(d) >= 8 ? 4 : hn::MaxLanes(d) / 2;
  const auto word = [p](std::size_t at) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, p + at, kBytes);
    return bits;
  };
  auto codes = hn::Set(du, word(0));
  if constexpr (hn::MaxLanes(d) > 8) codes = hn::IfThenElse(hn::FirstN(du, 8), codes, hn::Set(du, word(4)));
  const auto lane = hn::And(hn::Iota(du, 0), hn::Set(du, 7));
  const auto at_top = hn::Shl(codes, hn::Sub(hn::Set(du, 28), hn::ShiftLeft<2>(lane)));
  return hn::ConvertTo(d, hn::ShiftRight<28>(hn::BitCast(di, at_top)));
}

// out = (codes - zero) * scale for n elements, a multiple of 8.
template <class T>
HWY_INLINE void DecodeGroup(const T* codes, float scale, float zero, std::int64_t n, float* out) {
  const hn::CappedTag<float, 8> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, scale * kUnit<T>), offset = hn::Set(d, zero);
  for (std::int64_t i = 0; i < n; i += lanes)
    hn::StoreU(hn::Mul(hn::Sub(LoadElements(d, advance(codes, i)), offset), factor), d, out + i);
}

// `count` rows of one page, from that of `key` on, one after another in f32.
template <class T>
HWY_NOINLINE void DecodeRows(const KvSource<T>& source, std::int64_t key, std::int64_t head, int count,
                             const T* codes, float* out) {
  const hn::ScalableTag<float> d;
  const KvScales& scales = source.scales;
  const std::int64_t group_size = scales.group_size(), groups = scales.groups();
  HWY_ALIGN float group_scales[kMaxHeadDim / kLeastGroup + hn::MaxLanes(d)];
  KvScales::Row row = scales.row(key, head);
  with_activation_type(scales.scales().dtype, [&]<class S>(std::type_identity<S>) {
    const S* const all = scales.scales().as<S>();
    for (int j = 0; j < count; ++j, codes = advance(codes, source.rows.token_stride)) {
      if (groups == 1) {
        group_scales[0] = to_f32(all[row.scales]);
      } else {
        ForEachVector(groups, [&](std::int64_t i, auto extent) HWY_ATTR {
          hn::Store(LoadF32(d, all + row.scales + i, extent), d, group_scales + i);
        });
      }
      const std::int8_t* const zeros = scales.zeros(row);
      for (std::int64_t g = 0, i = 0; g < groups; ++g, i += group_size, out += group_size)
        DecodeGroup(advance(codes, i), group_scales[g], zeros ? zeros[g] : 0.0f, group_size, out);
      row = scales.next(row);
    }
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
