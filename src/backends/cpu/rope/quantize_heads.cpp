#include <algorithm>

#include "backends/cpu/rope/cache_slots.h"
#include "core/quantizer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/rope/quantize_heads.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

// As QuantizationRange::add() of each.
HWY_INLINE void AddRange(const float* x, std::int64_t n, QuantizationRange& range) {
  const F32Tag d;
  auto low = hn::Zero(d), high = low;
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto v = LoadF32(d, x + i, extent);
    const auto finite = hn::IfThenElseZero(hn::IsFinite(v), v);
    low = hn::Min(low, finite);
    high = hn::Max(high, finite);
  });
  range.low = std::min(range.low, -ReduceMax(d, hn::Neg(low)));
  range.high = std::max(range.high, ReduceMax(d, high));
}

HWY_INLINE F32Vec Scaled(F32Vec x, float scale) {
  const F32Tag d;
  return scale != 0 ? hn::Div(x, hn::Set(d, scale)) : hn::Zero(d);
}

// Codes of int4 or i8, one a byte: as Quantizer::code().
HWY_INLINE void RoundIntegers(const Quantizer& q, const float* x, std::int64_t n, std::int8_t* codes) {
  const F32Tag d;
  const hn::RebindToSigned<F32Tag> di;
  const hn::Rebind<std::int8_t, F32Tag> d8;
  const CodeEnds ends = code_ends(q.dtype);
  const auto zero = hn::Set(d, q.zero), lowest = hn::Set(d, ends.lowest), highest = hn::Set(d, ends.highest);
  HWY_ALIGN std::int8_t last[hn::MaxLanes(d8)];
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto scaled = Scaled(LoadF32(d, x + i, extent), q.scale);
    const auto rounded = hn::IfThenZeroElse(hn::IsNaN(scaled), hn::Round(scaled));
    const auto code = hn::Min(hn::Max(hn::Add(rounded, zero), lowest), highest);
    const auto bytes = hn::DemoteTo(d8, hn::ConvertTo(di, code));
    if constexpr (std::is_same_v<decltype(extent), All>) {
      hn::StoreU(bytes, d8, codes + i);
    } else {
      hn::StoreU(bytes, d8, last);
      std::copy_n(last, extent.count, codes + i);
    }
  });
}

// As f32_to_fp8().
template <int kMantissa, int kBias, std::uint8_t kLargest>
HWY_INLINE void RoundFloats(float scale, const float* x, std::int64_t n, std::uint8_t* codes) {
  const F32Tag d;
  const hn::RebindToSigned<F32Tag> di;
  const hn::Rebind<std::uint8_t, F32Tag> d8;
  constexpr int kShift = 23 - kMantissa;
  const auto unit = hn::Set(di, (151 - kBias - kMantissa) << 23);
  HWY_ALIGN std::uint8_t last[hn::MaxLanes(d8)];
  ForEachVector(n, [&](std::int64_t i, auto extent) HWY_ATTR {
    const auto bits = hn::BitCast(di, Scaled(LoadF32(d, x + i, extent), scale));
    const auto magnitude = hn::And(bits, hn::Set(di, 0x7fffffff));
    const auto sign =
        hn::ShiftRight<24>(hn::BitCast(hn::RebindToUnsigned<F32Tag>(), hn::Xor(bits, magnitude)));
    const auto denormal =
        hn::Sub(hn::BitCast(di, hn::Add(hn::BitCast(d, magnitude), hn::BitCast(d, unit))), unit);
    const auto odd = hn::And(hn::ShiftRight<kShift>(magnitude), hn::Set(di, 1));
    const auto rounding = hn::Add(hn::Set(di, (1 << (kShift - 1)) - 1 - ((127 - kBias) << 23)), odd);
    const auto normal = hn::ShiftRight<kShift>(hn::Add(magnitude, rounding));
    auto byte = hn::IfThenElse(hn::Lt(magnitude, hn::Set(di, (128 - kBias) << 23)), denormal, normal);
    byte = hn::Min(byte, hn::Set(di, kLargest));
    byte = hn::IfThenElse(hn::Gt(magnitude, hn::Set(di, 0x7f800000)), hn::Set(di, 0x7f), byte);
    const auto bytes = hn::DemoteTo(d8, hn::Or(byte, hn::BitCast(di, sign)));
    if constexpr (std::is_same_v<decltype(extent), All>) {
      hn::StoreU(bytes, d8, codes + i);
    } else {
      hn::StoreU(bytes, d8, last);
      std::copy_n(last, extent.count, codes + i);
    }
  });
}

void Round(const Quantizer& q, const float* x, std::int64_t n, void* out) {
  switch (q.dtype) {
    case DType::fp8_e4m3:
      return RoundFloats<3, 7, 0x7e>(q.scale, x, n, static_cast<std::uint8_t*>(out));
    case DType::fp8_e5m2:
      return RoundFloats<2, 15, 0x7b>(q.scale, x, n, static_cast<std::uint8_t*>(out));
    case DType::i8:
      return RoundIntegers(q, x, n, static_cast<std::int8_t*>(out));
    default:
      break;
  }
  constexpr std::int64_t kChunk = 256;
  std::int8_t codes[kChunk];
  auto* pairs = static_cast<std::uint8_t*>(out);
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, n - begin);
    RoundIntegers(q, x + begin, count, codes);
    for (std::int64_t i = 0; i < count; i += 2)
      *pairs++ = static_cast<std::uint8_t>((codes[i] & 15) | (codes[i + 1] & 15) << 4);
  }
}

void QuantizeHeads(const float* heads, std::int64_t num_heads, std::int64_t head_dim,
                   const cpu::CacheSlots& slots, std::int64_t slot) {
  const Quantization& q = slots.quantization();
  const DType dtype = slots.cache().dtype;
  const std::int64_t size = slots.group_size();
  for (std::int64_t g = 0, i = 0; i < head_dim; ++g, i += size) {
    Quantizer quantizer;
    for (std::int64_t h = 0; h < num_heads; ++h) {
      if (h == 0 || !slots.heads_share_scales()) {
        const std::int64_t scale_at = slots.scale_at(slot, h) + g, zero_at = slots.zero_at(slot, h) + g;
        if (slots.computes_scales()) {
          QuantizationRange range;
          for (std::int64_t sharing = h; sharing < (slots.heads_share_scales() ? num_heads : h + 1);
               ++sharing)
            AddRange(heads + sharing * head_dim + i, size, range);
          quantizer = Quantizer::store(dtype, range, q, scale_at, zero_at);
        } else {
          quantizer = Quantizer::load(dtype, q, scale_at, zero_at);
        }
      }
      Round(quantizer, heads + h * head_dim + i, size, slots.cache().at(slots.code_at(slot, h) + i));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(QuantizeHeads);

void cpu::quantize_heads(const float* heads, std::int64_t num_heads, std::int64_t head_dim,
                         const CacheSlots& slots, std::int64_t slot) {
  HWY_DYNAMIC_DISPATCH(QuantizeHeads)(heads, num_heads, head_dim, slots, slot);
}

}  // namespace kf
#endif
