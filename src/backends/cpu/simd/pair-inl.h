// Two vectors of f32 at a time: what one vector of a 16-bit dtype holds. Of bf16 they are its even and its odd
// elements, which takes a shift and a mask where neighbours would take shuffles; of f16 and f32 its halves.
// Functions of single elements and sums do not mind the order, as long as all operands have the same.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_PAIR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_PAIR_INL_H_
#undef KF_SIMD_PAIR_INL_H_
#else
#define KF_SIMD_PAIR_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "backends/cpu/simd/load_store-inl.h"
#include "core/half.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_HAVE_SCALABLE  // SVE, whose vectors can be in no struct but the compiler's own
using F32Pair = svfloat32x2_t;
HWY_INLINE F32Pair PairOf(F32Vec first, F32Vec second) { return svcreate2_f32(first, second); }
HWY_INLINE F32Vec FirstOf(F32Pair v) { return svget2_f32(v, 0); }
HWY_INLINE F32Vec SecondOf(F32Pair v) { return svget2_f32(v, 1); }
#else
struct F32Pair {
  F32Vec first, second;
};
HWY_INLINE F32Pair PairOf(F32Vec first, F32Vec second) { return {first, second}; }
HWY_INLINE F32Vec FirstOf(F32Pair v) { return v.first; }
HWY_INLINE F32Vec SecondOf(F32Pair v) { return v.second; }
#endif
HWY_INLINE void SetFirst(F32Pair& pair, F32Vec v) { pair = PairOf(v, SecondOf(pair)); }
HWY_INLINE void SetSecond(F32Pair& pair, F32Vec v) { pair = PairOf(FirstOf(pair), v); }

// The extent of a pair; see All and First.
struct Two {};

// f of vectors, or of both vectors of pairs.
template <class F, class... V>
HWY_INLINE auto Each(const F& f, V... v) {
  if constexpr ((std::is_same_v<V, F32Pair> && ...)) {
    return PairOf(f(FirstOf(v)...), f(SecondOf(v)...));
  } else {
    return f(v...);
  }
}

// Calls f(i, Two()) for every whole pair of [0, n), then as ForEachVector.
template <class F>
HWY_INLINE void ForEachPair(std::int64_t n, F&& f) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32Tag()));
  std::int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) f(i, Two());
  if (i + lanes <= n) {
    f(i, All());
    i += lanes;
  }
  if (i < n) f(i, First{static_cast<std::size_t>(n - i)});
}

// From p, in the order that pairs of dtype Order have.
template <class Order, class T>
HWY_INLINE F32Pair LoadInOrder(F32Tag d, const T* p, Two) {
  if constexpr (std::is_same_v<T, Bf16> && std::is_same_v<Order, Bf16>) {
    const hn::Repartition<std::uint16_t, F32Tag> d16;
    const hn::RebindToUnsigned<F32Tag> du;
    const auto both = hn::BitCast(du, hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(p)));
    return PairOf(hn::BitCast(d, hn::ShiftLeft<16>(both)),
                  hn::BitCast(d, hn::And(both, hn::Set(du, 0xffff0000u))));
  } else {
    const auto lower = LoadF32(d, p), upper = LoadF32(d, p + hn::Lanes(d));
    if constexpr (std::is_same_v<Order, Bf16>) {
      return PairOf(hn::ConcatEven(d, upper, lower), hn::ConcatOdd(d, upper, lower));
    } else {
      return PairOf(lower, upper);
    }
  }
}
template <class Order, class T>
HWY_INLINE F32Vec LoadInOrder(F32Tag d, const T* p, All all) {
  return LoadF32(d, p, all);
}
template <class Order, class T>
HWY_INLINE F32Vec LoadInOrder(F32Tag d, const T* p, First first) {
  return LoadF32(d, p, first);
}

template <class T>
HWY_INLINE F32Pair LoadF32(F32Tag d, const T* p, Two two) {
  return LoadInOrder<T>(d, p, two);
}

#if HWY_TARGET <= HWY_AVX3
// The conversion gives all of the first before the second.
HWY_INLINE hn::Vec<hn::Repartition<std::uint16_t, F32Tag>> ConvertedPair(F32Pair v) {
  HWY_ALIGN static constexpr std::uint16_t kInterleaved[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i bits;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(bits) : "v"(v.first.raw), "v"(v.second.raw));
  return hn::Vec<hn::Repartition<std::uint16_t, F32Tag>>{
      _mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved), bits)};
}
#endif

// A pair of bf16 as it lies in memory.
template <class T>
HWY_INLINE hn::Vec<hn::Repartition<std::uint16_t, F32Tag>> NarrowPair(F32Tag d, F32Pair v) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (std::is_same_v<T, Bf16Converted>) return ConvertedPair(v);
#endif
  const hn::Repartition<std::uint16_t, F32Tag> d16;
  return hn::OddEven(hn::BitCast(d16, RoundToBf16<T>(d, SecondOf(v))),
                     hn::BitCast(d16, hn::ShiftRight<16>(RoundToBf16<T>(d, FirstOf(v)))));
}

template <class T>
HWY_INLINE void StoreF32(F32Tag d, F32Pair v, T* p, Two) {
  if constexpr (kIsBf16<T>) {
    const hn::Repartition<std::uint16_t, F32Tag> d16;
    hn::StoreU(NarrowPair<T>(d, v), d16, reinterpret_cast<std::uint16_t*>(p));
  } else {
    StoreF32(d, FirstOf(v), p);
    StoreF32(d, SecondOf(v), p + hn::Lanes(d));
  }
}

// Past the caches, for outputs much larger than them; `p` is aligned to a vector. FlushStream() afterwards, before
// another thread reads.
template <class T>
HWY_INLINE void StreamF32(F32Tag d, F32Pair v, T* p) {
  const hn::Repartition<std::uint16_t, F32Tag> d16;
  if constexpr (kIsBf16<T>) {
    hn::Stream(NarrowPair<T>(d, v), d16, reinterpret_cast<std::uint16_t*>(p));
  } else if constexpr (std::is_same_v<T, F16>) {
    const auto lower = Narrow(d, FirstOf(v), T{}), upper = Narrow(d, SecondOf(v), T{});
    hn::Stream(hn::Combine(d16, upper, lower), d16, reinterpret_cast<std::uint16_t*>(p));
  } else {
    hn::Stream(FirstOf(v), d, p);
    hn::Stream(SecondOf(v), d, p + hn::Lanes(d));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
