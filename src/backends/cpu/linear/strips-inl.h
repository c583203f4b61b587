// Strips of a weight: from rows of any strides, from packed strips of 16-bit floats, from GGUF's blocks.
#if defined(KF_CPU_LINEAR_STRIPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_STRIPS_INL_H_
#undef KF_CPU_LINEAR_STRIPS_INL_H_
#else
#define KF_CPU_LINEAR_STRIPS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/operand-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// to[k][lane] = row `strip * lanes + lane` of the weight at column k_begin + k; zero where there is no such
// row.
template <class T>
HWY_INLINE void GatherStrip(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                            std::int64_t depth, T* HWY_RESTRICT to) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const std::int64_t rows = std::min(lanes, weight.dim(0) - strip * lanes);
  const std::int64_t row_stride = weight.stride(0), k_stride = weight.stride(1);
  const T* const from = weight.as<T>() + strip * lanes * row_stride + k_begin * k_stride;
  if (rows < lanes) std::fill(to, to + depth * lanes, T{});
  if (row_stride == 1) {  // an x @ W weight, seen transposed: features are neighbours
    for (std::int64_t k = 0; k < depth; ++k)
      std::memcpy(to + k * lanes, from + k * k_stride, static_cast<std::size_t>(rows) * sizeof(T));
    return;
  }
  for (std::int64_t lane = 0; lane < rows; ++lane) {
    const T* const row = from + lane * row_stride;
    for (std::int64_t k = 0; k < depth; ++k) to[k * lanes + lane] = row[k * k_stride];
  }
}

// 16-bit floats to f32, in order, so that `from` may be the upper half of `to`.
HWY_INLINE void WidenStrip(DType dtype, const std::uint16_t* from, std::int64_t depth, float* to) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::int64_t k = 0; k < depth; ++k, from += lanes, to += lanes)
    hn::Store(dtype == DType::f16 ? LoadF32(d, reinterpret_cast<const F16*>(from))
                                  : LoadF32(d, reinterpret_cast<const Bf16*>(from)),
              d, to);
}

// GGUF blocks of 32 values of a row, one row a lane. Four bytes of every row make a vector of 32-bit words,
// and shifting it gives a vector of strip after strip position: no shuffles, whatever the number of lanes.
template <DType kType>
struct BlockLayout;
template <>
struct BlockLayout<DType::q4_0> {
  static constexpr std::size_t kBytes = 18, kValuesAt = 2, kWords = 4;
};
template <>
struct BlockLayout<DType::q4_1> {
  static constexpr std::size_t kBytes = 20, kValuesAt = 4, kWords = 4;
};
template <>
struct BlockLayout<DType::q8_0> {
  static constexpr std::size_t kBytes = 34, kValuesAt = 2, kWords = 8;
};

template <DType kType>
HWY_INLINE void DecodeStrip(const TensorView& weight, std::int64_t strip, std::int64_t k_begin,
                            std::int64_t depth, float* HWY_RESTRICT to) {
  using Layout = BlockLayout<kType>;
  constexpr std::int64_t kElems = 32;
  const F32Tag d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d);
  const std::size_t rows =
      std::min(lanes, static_cast<std::size_t>(weight.dim(0)) - static_cast<std::size_t>(strip) * lanes);
  const std::int64_t row_bytes = weight.stride(0) / kElems * static_cast<std::int64_t>(Layout::kBytes);
  const auto* const first = weight.as<const std::uint8_t>() +
                            strip * static_cast<std::int64_t>(lanes) * row_bytes +
                            k_begin / kElems * static_cast<std::int64_t>(Layout::kBytes);

  // Rows that are not there keep zero scales.
  HWY_ALIGN F16 scales[hn::MaxLanes(d)] = {};
  HWY_ALIGN F16 mins[hn::MaxLanes(d)] = {};
  HWY_ALIGN std::uint32_t words[Layout::kWords][hn::MaxLanes(d)] = {};
  for (std::int64_t block = 0; block < depth / kElems; ++block) {
    const std::uint8_t* source = first + block * static_cast<std::int64_t>(Layout::kBytes);
    for (std::size_t lane = 0; lane < rows; ++lane, source += row_bytes) {
      std::memcpy(&scales[lane], source, 2);
      if constexpr (kType == DType::q4_1) std::memcpy(&mins[lane], source + 2, 2);
      for (std::size_t w = 0; w < Layout::kWords; ++w)
        std::memcpy(&words[w][lane], source + Layout::kValuesAt + 4 * w, 4);
    }
    const auto scale = LoadF32(d, scales);
    if constexpr (kType == DType::q8_0) {
      for (std::size_t w = 0; w < Layout::kWords; ++w) {
        auto bits = hn::Load(du, words[w]);
        for (int byte = 0; byte < 4; ++byte, to += lanes) {
          const auto q = hn::ShiftRight<24>(hn::BitCast(di, hn::ShiftLeft<24>(bits)));
          hn::Store(hn::Mul(hn::ConvertTo(d, q), scale), d, to);
          bits = hn::ShiftRight<8>(bits);
        }
      }
    } else {
      // (q - 8) d = q d - 8 d, and q d + m: products of 11 by 4 bits are exact, so either form rounds once.
      const auto offset = kType == DType::q4_0 ? hn::Mul(scale, hn::Set(d, -8.0f)) : LoadF32(d, mins);
      const auto mask = hn::Set(du, 15u);
      const auto value = [&](auto nibble) HWY_ATTR {
        return hn::MulAdd(hn::ConvertTo(d, hn::BitCast(di, hn::And(nibble, mask))), scale, offset);
      };
      for (std::size_t w = 0; w < Layout::kWords; ++w) {
        auto bits = hn::Load(du, words[w]);
        for (int byte = 0; byte < 4; ++byte, to += lanes) {
          hn::Store(value(bits), d, to);
          hn::Store(value(hn::ShiftRight<4>(bits)), d, to + 16 * lanes);
          bits = hn::ShiftRight<8>(bits);
        }
      }
      to += 16 * lanes;  // the high nibbles' half
    }
  }
}

// The strip in f32 for columns [k_begin, k_begin + depth): in place where it lies so, else made in `buffer`.
HWY_INLINE const float* StripBlock(const StripWeight& w, std::int64_t strip, std::int64_t k_begin,
                                   std::int64_t depth, float* buffer) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  const DType dtype = w.weight.dtype;
  if (w.packed != nullptr) {
    const std::int64_t at = (strip * w.weight.dim(1) + k_begin) * lanes;
    if (dtype == DType::f32) return static_cast<const float*>(w.packed) + at;
    WidenStrip(dtype, static_cast<const std::uint16_t*>(w.packed) + at, depth, buffer);
    return buffer;
  }
  switch (dtype) {
    case DType::f32:
      GatherStrip(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q4_0:
      DecodeStrip<DType::q4_0>(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q4_1:
      DecodeStrip<DType::q4_1>(w.weight, strip, k_begin, depth, buffer);
      break;
    case DType::q8_0:
      DecodeStrip<DType::q8_0>(w.weight, strip, k_begin, depth, buffer);
      break;
    default: {  // f16, bf16: gathered into the upper half of the buffer, widened from there
      auto* const narrow = reinterpret_cast<std::uint16_t*>(buffer) + depth * lanes;
      GatherStrip(w.weight, strip, k_begin, depth, narrow);
      WidenStrip(dtype, narrow, depth, buffer);
    }
  }
  return buffer;
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
