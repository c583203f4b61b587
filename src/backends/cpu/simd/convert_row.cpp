#include "backends/cpu/simd/convert_row.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/block_formats.h"
#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/simd/convert_row.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/load_store-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

template <class T>
void DecodePlain(const T* src, float* dst, std::int64_t n) {
  const F32Tag d;
  ForEachVector(n, [&](std::int64_t i, auto extent)
                       HWY_ATTR { StoreF32(d, LoadF32(d, src + i, extent), dst + i, extent); });
}

template <class T>
void EncodePlain(const float* src, T* dst, std::int64_t n) {
  const F32Tag d;
  ForEachVector(n, [&](std::int64_t i, auto extent)
                       HWY_ATTR { StoreF32(d, LoadF32(d, src + i, extent), dst + i, extent); });
}

// Both halves of 16 bytes: q * scale + offset to values 0..15 (low nibbles) and 16..31 (high ones).
HWY_INLINE void DecodeNibbles(const std::uint8_t* bytes, float scale, float offset, float* dst) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const auto vscale = hn::Set(d, scale), voffset = hn::Set(d, offset);
  for (std::size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const auto both = hn::PromoteTo(di, hn::LoadU(d8, bytes + i));
    const auto low = hn::And(both, hn::Set(di, 15)), high = hn::ShiftRight<4>(both);
    hn::StoreU(hn::MulAdd(hn::ConvertTo(d, low), vscale, voffset), d, dst + i);
    hn::StoreU(hn::MulAdd(hn::ConvertTo(d, high), vscale, voffset), d, dst + 16 + i);
  }
}

HWY_INLINE void DecodeBlock(const BlockQ4_0& block, float* dst) {
  const float scale = f16_to_f32(block.d);
  DecodeNibbles(block.nibbles, scale, -8 * scale, dst);  // the offset is exact, and so is the difference
}

HWY_INLINE void DecodeBlock(const BlockQ4_1& block, float* dst) {
  DecodeNibbles(block.nibbles, f16_to_f32(block.d), f16_to_f32(block.m), dst);
}

HWY_INLINE void DecodeBlock(const BlockQ5_0& block, float* dst) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const float scale = f16_to_f32(block.d);
  const auto vscale = hn::Set(d, scale), lowest = hn::Set(d, -16 * scale);  // exact, and so is the difference
  std::int32_t high;
  std::memcpy(&high, block.high, sizeof high);
  const auto lane_bits = hn::Shl(hn::Set(di, 1), hn::Iota(di, 0));
  const auto store = [&](auto q, std::size_t at) HWY_ATTR {
    const auto fifth = hn::RebindMask(d, hn::TestBit(hn::Set(di, high >> at), lane_bits));
    hn::StoreU(hn::MulAdd(hn::ConvertTo(d, q), vscale, hn::IfThenZeroElse(fifth, lowest)), d, dst + at);
  };
  for (std::size_t i = 0; i < 16; i += hn::Lanes(d)) {
    const auto both = hn::PromoteTo(di, hn::LoadU(d8, block.nibbles + i));
    store(hn::And(both, hn::Set(di, 15)), i);
    store(hn::ShiftRight<4>(both), i + 16);
  }
}

HWY_INLINE void DecodeBlock(const BlockQ4_K& block, float* dst) {
  const hn::CappedTag<float, 32> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const float scale = f16_to_f32(block.d), min = f16_to_f32(block.m);
  const ScalesQ4_K s = scales_of(block.scales);
  for (std::size_t part = 0; part < 8; part += 2) {
    const auto scale0 = hn::Set(d, scale * s.scale[part]), scale1 = hn::Set(d, scale * s.scale[part + 1]);
    const auto min0 = hn::Set(d, min * s.min[part]), min1 = hn::Set(d, min * s.min[part + 1]);
    for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const auto both = hn::PromoteTo(di, hn::LoadU(d8, block.nibbles + part * 16 + i));
      const auto low = hn::And(both, hn::Set(di, 15)), high = hn::ShiftRight<4>(both);
      hn::StoreU(hn::MulSub(hn::ConvertTo(d, low), scale0, min0), d, dst + part * 32 + i);
      hn::StoreU(hn::MulSub(hn::ConvertTo(d, high), scale1, min1), d, dst + part * 32 + 32 + i);
    }
  }
}

HWY_INLINE void DecodeBlock(const BlockQ6_K& block, float* dst) {
  const hn::CappedTag<float, 16> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::uint8_t, decltype(d)> d8;
  const float scale = f16_to_f32(block.d);
  for (std::size_t half = 0; half < 2; ++half)
    for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) {
      const auto low0 = hn::PromoteTo(di, hn::LoadU(d8, block.low + half * 64 + i)),
                 low1 = hn::PromoteTo(di, hn::LoadU(d8, block.low + half * 64 + 32 + i)),
                 high = hn::PromoteTo(di, hn::LoadU(d8, block.high + half * 32 + i));
      const auto store = [&](std::size_t quarter, auto low4, auto high2) HWY_ATTR {
        const auto q = hn::Or(hn::And(low4, hn::Set(di, 15)), hn::And(high2, hn::Set(di, 48)));
        const std::size_t at = half * 128 + quarter * 32 + i;
        const auto value = hn::ConvertTo(d, hn::Sub(q, hn::Set(di, 32)));
        hn::StoreU(hn::Mul(value, hn::Set(d, scale * block.scales[at / 16])), d, dst + at);
      };
      store(0, low0, hn::ShiftLeft<4>(high));
      store(1, low1, hn::ShiftLeft<2>(high));
      store(2, hn::ShiftRight<4>(low0), high);
      store(3, hn::ShiftRight<4>(low1), hn::ShiftRight<2>(high));
    }
}

HWY_INLINE void DecodeBlock(const BlockQ8_0& block, float* dst) {
  const hn::CappedTag<float, BlockQ8_0::kElems> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<std::int8_t, decltype(d)> d8;
  const auto scale = hn::Set(d, f16_to_f32(block.d));
  for (std::size_t i = 0; i < block.kElems; i += hn::Lanes(d))
    hn::StoreU(hn::Mul(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, block.q + i))), scale), d, dst + i);
}

template <class Block>
void DecodeBlocks(const Block* src, float* dst, std::int64_t n) {
  for (std::int64_t b = 0; b < n / Block::kElems; ++b) DecodeBlock(src[b], dst + b * Block::kElems);
}

// A byte has 256 values: a table decodes it.
template <float (*kDecode)(std::uint8_t)>
void DecodeFp8(const std::uint8_t* src, float* dst, std::int64_t n) {
  static constexpr auto kTable = [] {
    std::array<float, 256> table{};
    for (int i = 0; i < 256; ++i) table[static_cast<std::size_t>(i)] = kDecode(static_cast<std::uint8_t>(i));
    return table;
  }();
  for (std::int64_t i = 0; i < n; ++i) dst[i] = kTable[src[i]];
}

void Decode(DType from, const void* src, float* dst, std::int64_t n) {
  switch (from) {
    case DType::f16:
      return DecodePlain(static_cast<const F16*>(src), dst, n);
    case DType::bf16:
      return DecodePlain(static_cast<const Bf16*>(src), dst, n);
    case DType::fp8_e4m3:
      return DecodeFp8<fp8_e4m3_to_f32>(static_cast<const std::uint8_t*>(src), dst, n);
    case DType::fp8_e5m2:
      return DecodeFp8<fp8_e5m2_to_f32>(static_cast<const std::uint8_t*>(src), dst, n);
    case DType::q4_0:
      return DecodeBlocks(static_cast<const BlockQ4_0*>(src), dst, n);
    case DType::q4_1:
      return DecodeBlocks(static_cast<const BlockQ4_1*>(src), dst, n);
    case DType::q5_0:
      return DecodeBlocks(static_cast<const BlockQ5_0*>(src), dst, n);
    case DType::q8_0:
      return DecodeBlocks(static_cast<const BlockQ8_0*>(src), dst, n);
    case DType::q4_k:
      return DecodeBlocks(static_cast<const BlockQ4_K*>(src), dst, n);
    case DType::q6_k:
      return DecodeBlocks(static_cast<const BlockQ6_K*>(src), dst, n);
    default:
      std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(float));
  }
}

void Encode(const float* src, DType to, void* dst, std::int64_t n) {
  if (to == DType::f16) {
    EncodePlain(src, static_cast<F16*>(dst), n);
  } else {
    EncodePlain(src, static_cast<Bf16*>(dst), n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(Decode);
HWY_EXPORT(Encode);

namespace cpu {

void convert_row(DType from, const void* src, DType to, void* dst, std::int64_t n) {
  const DTypeInfo& info = dtype_info(from);
  if (from == to) {
    std::memcpy(dst, src, static_cast<std::size_t>(n / info.block_elems * info.block_bytes));
  } else if (to == DType::f32) {
    HWY_DYNAMIC_DISPATCH(Decode)(from, src, static_cast<float*>(dst), n);
  } else if (from == DType::f32) {
    HWY_DYNAMIC_DISPATCH(Encode)(static_cast<const float*>(src), to, dst, n);
  } else {
    constexpr std::int64_t kChunk = 256;  // whole blocks
    alignas(64) float chunk[kChunk];
    for (std::int64_t i = 0; i < n; i += kChunk) {
      const std::int64_t count = std::min(kChunk, n - i);
      HWY_DYNAMIC_DISPATCH(Decode)
      (from, static_cast<const char*>(src) + i / info.block_elems * info.block_bytes, chunk, count);
      HWY_DYNAMIC_DISPATCH(Encode)(chunk, to, static_cast<std::uint16_t*>(dst) + i, count);
    }
  }
}

}  // namespace cpu
}  // namespace kf
#endif
