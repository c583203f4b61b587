// How each weight format is read. A row is read in steps; a step has kParts parts, each of kVectors vectors of weights, to
// be multiplied (MulAdd) with as many vectors of x. Where kScaled, these sums begin anew (Start) in every step, and are then scaled (by what
// LoadScales reads, once for all tokens) and added to the row's (Close).
//
//   kStepBytes     of a row
//   kInputFloats   of x for a step: its vectors, then what Close needs
//   kFetchesAll    whether every line of a row is asked for ahead, or only what follows the ends of pages (tiles-inl.h)
//   kLoadsPart     whether a step that a row has only a part of is loaded by LoadPart, without what lies behind it, as if zeros
//                  followed; if not, it is copied and padded
#if defined(KF_CPU_LINEAR_GEMV_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMV_FORMATS_INL_H_
#undef KF_CPU_LINEAR_GEMV_FORMATS_INL_H_
#else
#define KF_CPU_LINEAR_GEMV_FORMATS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "backends/cpu/linear/quantized-inl.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "core/block_formats.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F16ToF32;
using kf::HWY_NAMESPACE::F32Tag;
using kf::HWY_NAMESPACE::F32Vec;
using kf::HWY_NAMESPACE::LoadF32;

using WordTag = hn::RebindToUnsigned<F32Tag>;
using IntTag = hn::RebindToSigned<F32Tag>;
using HalfTag = hn::Rebind<std::uint16_t, F32Tag>;  // as many 16-bit lanes
using ByteTag = hn::Rebind<std::uint8_t, F32Tag>;
using IntVec = hn::Vec<IntTag>;
inline constexpr std::size_t kLanes = hn::MaxLanes(F32Tag());

HWY_INLINE IntVec LoadBytes(const std::uint8_t* p) {
  return hn::PromoteTo(IntTag(), hn::LoadU(ByteTag(), p));
}

// The f16 at `p` in all lanes.
HWY_INLINE F32Vec LoadHalf(const std::uint8_t* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return F16ToF32(F32Tag(), hn::Set(HalfTag(), bits));
}

// Products and their sums in f32.
struct F32Products {
  static constexpr bool kFetchesAll = true;
  static constexpr bool kLoadsPart = false;
  using Sum = F32Vec;
  using Input = F32Vec;
  static HWY_INLINE F32Vec Start(const float*) { return hn::Zero(F32Tag()); }
  static HWY_INLINE F32Vec LoadInput(const float* x) { return hn::Load(F32Tag(), x); }
  static HWY_INLINE F32Vec MulAdd(F32Vec w, F32Vec x, F32Vec sum) { return hn::MulAdd(w, x, sum); }
};

// Rows of f32, f16 or bf16.
template <class T>
struct PlainFormat : F32Products {
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kVectors = 1;
  static constexpr std::size_t kStepBytes = kLanes * sizeof(T);
  static constexpr std::size_t kInputFloats = kLanes;
  static constexpr bool kScaled = false;
  static constexpr bool kFetchesAll = sizeof(T) < sizeof(float);

  const T* weights;
  HWY_INLINE void Load(const std::uint8_t* p) { weights = reinterpret_cast<const T*>(p); }
  HWY_INLINE F32Vec Get(std::size_t) const { return LoadF32(F32Tag(), weights); }
};

// q8_0: a step is a block. Quants are scaled before they meet x: a sum of unscaled products would overflow
// from x = 3e36 on.
struct Q8Format : F32Products {
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kVectors = 32 / kLanes;
  static constexpr std::size_t kStepBytes = 34;
  static constexpr std::size_t kInputFloats = 32;
  static constexpr bool kScaled = false;

  const std::int8_t* quants;
  F32Vec scale;
  HWY_INLINE void Load(const std::uint8_t* p) {
    scale = LoadHalf(p);
    quants = reinterpret_cast<const std::int8_t*>(p + 2);
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const auto bytes = hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), quants + v * kLanes);
    return hn::Mul(scale, hn::ConvertTo(F32Tag(), hn::PromoteTo(IntTag(), bytes)));
  }
};

// Thirty-two codes of a byte each, made by arithmetic on bytes (as many of them as a vector has), then widened from
// memory: a load that widens costs less than taking a vector apart.
using CodeTag = hn::CappedTag<std::uint8_t, 32>;
struct Codes {
  alignas(64) std::int8_t values[32];

  // f(i) gives codes [i, i + Lanes(CodeTag())).
  template <class F>
  HWY_INLINE void Fill(const F& f) {
    const CodeTag d;
    const hn::RebindToSigned<CodeTag> di;
    for (std::size_t i = 0; i < 32; i += hn::Lanes(d)) hn::Store(hn::BitCast(di, f(i)), di, values + i);
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const auto bytes = hn::LoadU(hn::Rebind<std::int8_t, F32Tag>(), values + v * kLanes);
    return hn::ConvertTo(F32Tag(), hn::PromoteTo(IntTag(), bytes));
  }
};
// Bytes shifted right by as many bits, without those of their neighbours that come in.
HWY_INLINE hn::Vec<CodeTag> ShiftBytes(hn::Vec<CodeTag> bytes, int bits, std::uint8_t mask) {
  const CodeTag d;
  const hn::Repartition<std::uint16_t, CodeTag> wide;
  return hn::And(hn::BitCast(d, hn::ShiftRightSame(hn::BitCast(wide, bytes), bits)), hn::Set(d, mask));
}

// q5_0: a step is a block. Like q8_0's, weights are scaled before they meet x.
struct Q5Format : F32Products {
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kVectors = 32 / kLanes;
  static constexpr std::size_t kStepBytes = sizeof(BlockQ5_0);
  static constexpr std::size_t kInputFloats = 32;
  static constexpr bool kScaled = false;

  Codes codes;
  F32Vec scale;
  HWY_INLINE void Load(const std::uint8_t* p) {
    const CodeTag d;
    const hn::Repartition<std::uint32_t, CodeTag> words;
    scale = LoadHalf(p);
    std::uint32_t high;
    std::memcpy(&high, p + offsetof(BlockQ5_0, high), sizeof high);
    const std::uint8_t* const nibbles = p + offsetof(BlockQ5_0, nibbles);
    // Byte i takes the byte of `high` that has bit i, and looks at that bit.
    alignas(32) static constexpr std::uint8_t kByteOf[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                             2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    const auto bit = hn::BitCast(d, hn::Set(hn::Repartition<std::uint64_t, CodeTag>(), 0x8040201008040201u));
    codes.Fill([&](std::size_t i) HWY_ATTR {
      hn::Vec<CodeTag> low;
      if constexpr (hn::MaxLanes(CodeTag()) == 32) {
        const hn::Half<CodeTag> half;
        const auto both = hn::LoadU(half, nibbles);
        low = hn::Combine(d, hn::ShiftRight<4>(both), hn::And(both, hn::Set(half, 15)));
      } else {
        low = ShiftBytes(hn::LoadU(d, nibbles), i == 0 ? 0 : 4, 15);
      }
      const auto spread =
          hn::TableLookupBytes(hn::BitCast(d, hn::Set(words, high)), hn::Load(d, kByteOf + i));
      // q - 16: without the fifth bit the upper half of the byte is that of -16 to -1.
      return hn::Or(low, hn::IfThenZeroElse(hn::TestBit(spread, bit), hn::Set(d, 0xF0)));
    });
  }
  HWY_INLINE F32Vec Get(std::size_t v) const { return hn::Mul(codes.Get(v), scale); }
};

// q4_k: a step is a block, a part two of its eight: the low and the high halves of 32 bytes.
struct Q4KFormat : F32Products {
  static constexpr std::size_t kParts = 4;
  static constexpr std::size_t kVectors = 64 / kLanes;
  static constexpr std::size_t kStepBytes = sizeof(BlockQ4_K);
  static constexpr std::size_t kInputFloats = BlockQ4_K::kElems;
  static constexpr bool kScaled = false;

  const std::uint8_t *block, *nibbles;
  F32Vec scale[2], min[2];
  alignas(64) float scales[8], mins[8];
  HWY_INLINE void Load(const std::uint8_t* p) {
    block = p;
    const hn::CappedTag<float, 8> d;
    const hn::RebindToSigned<decltype(d)> di;
    const hn::Rebind<std::uint8_t, decltype(d)> d8;
    const ScalesQ4_K s = scales_of(p + 4);
    const auto all = hn::Set(d, hn::GetLane(LoadHalf(p))),
               all_mins = hn::Set(d, hn::GetLane(LoadHalf(p + 2)));
    for (std::size_t i = 0; i < 8; i += hn::Lanes(d)) {
      const auto value = [&](const std::uint8_t* from) HWY_ATTR {
        return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, from + i)));
      };
      hn::Store(hn::Mul(all, value(s.scale)), d, scales + i);
      hn::Store(hn::Mul(all_mins, value(s.min)), d, mins + i);
    }
  }
  HWY_INLINE void StartPart(std::size_t part) {
    nibbles = block + 16 + 32 * part;
    for (std::size_t i = 0; i < 2; ++i) {
      scale[i] = hn::Set(F32Tag(), scales[2 * part + i]);
      min[i] = hn::Set(F32Tag(), mins[2 * part + i]);
    }
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const std::size_t first = v * kLanes;
    const IntVec both = LoadBytes(nibbles + first % 32);
    const IntVec q = first < 32 ? hn::And(both, hn::Set(IntTag(), 15)) : hn::ShiftRight<4>(both);
    return hn::MulSub(hn::ConvertTo(F32Tag(), q), scale[first / 32], min[first / 32]);
  }
};

// q6_k: a step is a block, a part two of its sixteen.
struct Q6KFormat : F32Products {
  static constexpr std::size_t kParts = 8;
  static constexpr std::size_t kVectors = 32 / kLanes;
  static constexpr std::size_t kStepBytes = sizeof(BlockQ6_K);
  static constexpr std::size_t kInputFloats = BlockQ6_K::kElems;
  static constexpr bool kScaled = false;

  const std::uint8_t* block;
  Codes codes;
  const float* scale;
  alignas(64) float scales[16];
  HWY_INLINE void Load(const std::uint8_t* p) {
    block = p;
    const hn::CappedTag<float, 16> d;
    const hn::RebindToSigned<decltype(d)> di;
    const hn::Rebind<std::int8_t, decltype(d)> d8;
    const auto all = hn::Set(d, hn::GetLane(LoadHalf(p + offsetof(BlockQ6_K, d))));
    const auto* const from = reinterpret_cast<const std::int8_t*>(p + offsetof(BlockQ6_K, scales));
    for (std::size_t i = 0; i < 16; i += hn::Lanes(d)) {
      const auto s = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, from + i)));
      hn::Store(hn::Mul(all, s), d, scales + i);
    }
  }
  HWY_INLINE void StartPart(std::size_t part) {
    const CodeTag d;
    const auto quarter =
        static_cast<int>(part % 4);  // of half a block: which halves of bytes, which pairs of bits
    const std::uint8_t* const low = block + part / 4 * 64 + part % 2 * 32;
    const std::uint8_t* const high = block + offsetof(BlockQ6_K, high) + part / 4 * 32;
    codes.Fill([&](std::size_t i) HWY_ATTR {
      const auto low4 = ShiftBytes(hn::LoadU(d, low + i), quarter / 2 * 4, 15);
      const auto high2 = ShiftBytes(hn::LoadU(d, high + i), 2 * quarter, 3);
      const hn::Repartition<std::uint16_t, CodeTag> wide;
      const auto upper = hn::BitCast(d, hn::ShiftLeft<4>(hn::BitCast(wide, high2)));
      return hn::Sub(hn::Or(low4, upper), hn::Set(d, 32));
    });
    scale = scales + 2 * part;
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    return hn::Mul(codes.Get(v), hn::Set(F32Tag(), scale[v * kLanes / 16]));
  }
};

// The nibbles of neighbouring blocks, four words a block, as many blocks as fill a vector.
template <std::size_t kBlockBytes, class D>
HWY_INLINE hn::Vec<D> LoadNibbles(D d, const std::uint8_t* p) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(p));
  } else {
    const hn::Half<D> half;
    const std::uint8_t* upper = p + kBlockBytes * (hn::MaxLanes(half) / 4);
    return hn::Combine(d, LoadNibbles<kBlockBytes>(half, upper), LoadNibbles<kBlockBytes>(half, p));
  }
}

// The first field of neighbouring blocks, repeated for as many lanes as a block has of the vector: four
// 16-bit scales, or two pairs of scale and minimum.
template <std::size_t kBlockBytes, class D>
HWY_INLINE hn::Vec<D> SpreadField(D d, const std::uint8_t* p) {
  using T = hn::TFromD<D>;
  constexpr std::size_t kBlockLanes = 8 / sizeof(T);
  if constexpr (hn::MaxLanes(D()) == kBlockLanes) {
    T field;
    std::memcpy(&field, p, sizeof field);
    return hn::Set(d, field);
  } else {
    const hn::Half<D> half;
    const std::uint8_t* upper = p + kBlockBytes * (hn::MaxLanes(half) / kBlockLanes);
    return hn::Combine(d, SpreadField<kBlockBytes>(half, upper), SpreadField<kBlockBytes>(half, p));
  }
}

// Nibbles, a word of eight in each lane. A nibble is not shifted down: masked in place it is q * 2^(4 n), which converts
// to f32 exactly, and x comes multiplied by 2^(-4 n). A step is eight vectors, one for each nibble of the word; a ninth
// of x holds each lane's sum of x, by which the minimum counts:
//   sum (d q + m) x = d sum(q x) + m sum(x)
struct NibbleWords : F32Products {
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kVectors = 8;
  static constexpr std::size_t kStepElems = kVectors * kLanes;
  static constexpr std::size_t kInputFloats = (kVectors + 1) * kLanes;
  static constexpr bool kScaled = true;

  hn::Vec<WordTag> low, high;
  F32Vec scale, min;
  HWY_INLINE void SetWords(hn::Vec<WordTag> words) {
    low = words;
    high = hn::ShiftRight<16>(words);
  }
  // Shifting by at most 12 bits keeps x * 2^(-4 n) exact down to 2^-114.
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const auto mask = hn::Set(WordTag(), 0xFu << (4 * (v % 4)));
    return hn::ConvertTo(F32Tag(), hn::BitCast(IntTag(), hn::And(v < 4 ? low : high, mask)));
  }
  // From the first fields of the blocks, four halves each: scale and minimum, side by side, or the scale of q4_0, whose
  // minimum is -8 of it.
  template <bool kHasMin>
  HWY_INLINE void SetHeaders(hn::Vec<HalfTag> headers) {
    const F32Tag d;
    const F32Vec values = F16ToF32(d, headers);
    scale = kHasMin ? hn::DupEven(values) : values;
    min = kHasMin ? hn::DupOdd(values) : hn::Mul(hn::Set(d, -8.0f), values);
  }
  HWY_INLINE F32Vec Close(F32Vec sum, const float* x_sum, F32Vec acc) const {
    return hn::MulAdd(min, hn::Load(F32Tag(), x_sum), hn::MulAdd(scale, sum, acc));
  }
};

// q4_0 and q4_1: a block is four lanes.
template <bool kHasMin>
struct NibbleFormat : NibbleWords {
  static constexpr std::size_t kHeader = kHasMin ? 4 : 2;
  static constexpr std::size_t kBlockBytes = kHeader + 16;
  static constexpr std::size_t kStepBytes = kLanes / 4 * kBlockBytes;

  const std::uint8_t* blocks;
  HWY_INLINE void Load(const std::uint8_t* p) {
    blocks = p;
    SetWords(LoadNibbles<kBlockBytes>(WordTag(), p + kHeader));
  }
  HWY_INLINE void LoadScales() {
    if constexpr (kHasMin) {
      const hn::Repartition<std::uint32_t, HalfTag> pairs;
      SetHeaders<kHasMin>(hn::BitCast(HalfTag(), SpreadField<kBlockBytes>(pairs, blocks)));
    } else {
      SetHeaders<kHasMin>(SpreadField<kBlockBytes>(HalfTag(), blocks));
    }
  }
};

#if HWY_TARGET <= HWY_AVX3
// Elements of two vectors, by their numbers among those of both.
HWY_INLINE hn::Vec<WordTag> TwoTablesLookup(hn::Vec<WordTag> a, hn::Vec<WordTag> b,
                                            hn::Vec<WordTag> numbers) {
  return hn::Vec<WordTag>{_mm512_permutex2var_epi32(a.raw, numbers.raw, b.raw)};
}
using HalfWordTag = hn::Repartition<std::uint16_t, WordTag>;
HWY_INLINE hn::Vec<HalfWordTag> TwoTablesLookup(hn::Vec<HalfWordTag> a, hn::Vec<HalfWordTag> b,
                                                hn::Vec<HalfWordTag> numbers) {
  return hn::Vec<HalfWordTag>{_mm512_permutex2var_epi16(a.raw, numbers.raw, b.raw)};
}

// The same, where a step is hardly longer than a vector: two loads, which overlap, hold it, and permutations take nibbles
// and scales out of these.
template <bool kHasMin>
struct WideNibbleFormat : NibbleWords {
  using Blocks = NibbleFormat<kHasMin>;
  static constexpr std::size_t kStepBytes = Blocks::kStepBytes;
  static constexpr bool kLoadsPart = true;

  // What all fields are whole numbers of.
  using T = std::conditional_t<kHasMin, std::uint32_t, std::uint16_t>;
  using Tag = hn::Repartition<T, F32Tag>;
  static constexpr std::size_t kElems = hn::MaxLanes(Tag()), kPerWord = 4 / sizeof(T),
                               kStep = kStepBytes / sizeof(T), kBlock = Blocks::kBlockBytes / sizeof(T),
                               kHeader = Blocks::kHeader / sizeof(T),
                               kSecond = kStep - kElems;  // where the second load begins
  // Which elements of the two loads make the nibbles' vector, and which of the first the headers, four halves a block.
  struct Indices {
    alignas(64) T nibbles[kElems], headers[kElems];
  };
  static constexpr Indices MakeIndices() {
    Indices indices{};
    for (std::size_t i = 0; i < kElems; ++i) {
      const std::size_t block = i / (4 * kPerWord), at = block * kBlock + kHeader + i % (4 * kPerWord);
      indices.nibbles[i] = static_cast<T>(at < kElems ? at : kElems + at - kSecond);
      indices.headers[i] = static_cast<T>(i / (8 / sizeof(T)) % (kLanes / 4) * kBlock);
    }
    return indices;
  }
  static constexpr Indices kIndices = MakeIndices();

  hn::Vec<HalfTag> headers;
  HWY_INLINE void Load(const std::uint8_t* p) {
    const Tag d;
    const T* const from = reinterpret_cast<const T*>(p);
    Take(hn::LoadU(d, from), hn::LoadU(d, from + kSecond));
  }
  HWY_INLINE void LoadPart(const std::uint8_t* p, std::size_t bytes) {
    const Tag d;
    const T* const from = reinterpret_cast<const T*>(p);
    const std::size_t count = bytes / sizeof(T);
    const auto load = [&](std::size_t begin) HWY_ATTR {
      return hn::MaskedLoad(hn::FirstN(d, count > begin ? count - begin : 0), d, from + begin);
    };
    Take(load(0), load(kSecond));
  }
  HWY_INLINE void Take(hn::Vec<Tag> first, hn::Vec<Tag> second) {
    const Tag d;
    SetWords(hn::BitCast(WordTag(), TwoTablesLookup(first, second, hn::Load(d, kIndices.nibbles))));
    headers = hn::BitCast(
        HalfTag(),
        hn::LowerHalf(hn::Half<Tag>(), TwoTablesLookup(first, first, hn::Load(d, kIndices.headers))));
  }
  HWY_INLINE void LoadScales() { SetHeaders<kHasMin>(headers); }
};

template <bool kHasMin>
using BlockNibbleFormat = WideNibbleFormat<kHasMin>;
#else
template <bool kHasMin>
using BlockNibbleFormat = NibbleFormat<kHasMin>;
#endif

// Formats with scales beside the weight: SetScales() gives them and the zeros, a lane each.

// int4: neighbours are the nibbles of a word, and 32 elements are four lanes.
struct Int4Format : NibbleWords {
  static constexpr std::size_t kElemsPerByte = 2;
  static constexpr std::size_t kStepBytes = kStepElems / kElemsPerByte;

  HWY_INLINE void Load(const std::uint8_t* p) {
    const auto words = hn::LoadU(WordTag(), reinterpret_cast<const std::uint32_t*>(p));
    SetWords(hn::Xor(words, hn::Set(WordTag(), kInt4Signs)));
  }
  HWY_INLINE void SetScales(F32Vec of_q, F32Vec zero) {
    scale = of_q;
    min = hn::Mul(of_q, hn::Sub(hn::Set(F32Tag(), -8.0f), zero));
  }
  HWY_INLINE void LoadScales() {}
};

// i8 and fp8: scaled before they meet x, as q8_0.
template <DType kType>
struct ByteFormat : F32Products {
  static constexpr std::size_t kElemsPerByte = 1;
  static constexpr std::size_t kParts = 1;
  static constexpr std::size_t kStepElems = 32;
  static constexpr std::size_t kVectors = kStepElems / kLanes;
  static constexpr std::size_t kStepBytes = kStepElems;
  static constexpr std::size_t kInputFloats = kStepElems;
  static constexpr bool kScaled = false;

  const std::uint8_t* codes;
  F32Vec scale, zero;
  HWY_INLINE void Load(const std::uint8_t* p) { codes = p; }
  HWY_INLINE void SetScales(F32Vec of_q, F32Vec of_zero) {
    scale = of_q;
    zero = of_zero;
  }
  HWY_INLINE F32Vec Get(std::size_t v) const {
    const F32Tag d;
    if constexpr (kType == DType::i8) {
      const auto bytes =
          hn::LoadU(hn::RebindToSigned<ByteTag>(), reinterpret_cast<const std::int8_t*>(codes) + v * kLanes);
      return hn::Mul(hn::Sub(hn::ConvertTo(d, hn::PromoteTo(IntTag(), bytes)), zero), scale);
    } else {
      const auto code = hn::PromoteTo(HalfTag(), hn::LoadU(ByteTag(), codes + v * kLanes));
      const F32Vec value =
          hn::Mul(F16ToF32(d, Fp8ToF16<kType>(HalfTag(), code)), hn::Set(d, kFp8Unit<kType>));
      return hn::Mul(value, scale);
    }
  }
};

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
