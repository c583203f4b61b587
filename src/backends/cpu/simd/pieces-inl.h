// Cutting vectors of f32 into pieces of bf16 (matrix_units.h).
#if defined(KF_CPU_SIMD_PIECES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_SIMD_PIECES_INL_H_
#undef KF_CPU_SIMD_PIECES_INL_H_
#else
#define KF_CPU_SIMD_PIECES_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/words-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F32Vec;

#if HWY_TARGET <= HWY_AVX3

// How a value is cut: to the nearest, so that what is left is as small as may be; or so that all pieces have its sign, none of them is
// zero unless it is, and all of an infinity are infinite.
enum class Cut { nearest, same_sign };

// Calls body(piece, vector whose lanes' upper halves are that piece) for every piece but the last, and returns what is left for it.
template <int kPieces, Cut kCut, class Body>
HWY_INLINE F32Vec CutHeads(F32Vec v, const Body& body) {
  const F32Tag d;
  const WordTag du;
  if constexpr (kPieces > 1) {
    // What is not finite has no head, and neither has zero where it is made from the next smaller number.
    const auto magnitude = hn::And(hn::BitCast(du, v), hn::Set(du, 0x7FFFFFFFu));
    const auto has_head = kCut == Cut::nearest
                              ? hn::Lt(magnitude, hn::Set(du, 0x7F800000u))
                              : hn::Lt(hn::Sub(magnitude, hn::Set(du, 1u)), hn::Set(du, 0x7F7FFFFFu));
    // Half of what a head's last bit counts; nothing where that would round to infinity.
    const auto half = hn::IfThenElseZero(hn::Lt(magnitude, hn::Set(du, 0x7F7F8000u)), hn::Set(du, 0x8000u));
    for (int piece = 0; piece + 1 < kPieces; ++piece) {
      const auto bits = hn::BitCast(du, v);
      const auto near = kCut == Cut::nearest ? hn::Add(bits, half) : hn::Sub(bits, hn::Set(du, 1u));
      auto head = hn::IfThenElseZero(has_head, hn::And(near, hn::Set(du, 0xFFFF0000u)));
      auto rest = hn::Sub(v, hn::BitCast(d, head));
      if constexpr (kCut == Cut::same_sign) {
        const auto infinite = hn::Eq(magnitude, hn::Set(du, 0x7F800000u));
        head = hn::IfThenElse(infinite, bits, head);
        rest = hn::IfThenElse(hn::RebindMask(d, infinite), v, rest);
      }
      body(piece, head);
      v = rest;
    }
  }
  return v;
}

HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, F32Tag>> ToBf16(F32Vec v) {
  return kf::HWY_NAMESPACE::Narrow(F32Tag(), v, kf::HWY_NAMESPACE::Bf16Converted{});
}

// Vectors of neighbours, side by side in words, piece by piece.
template <int kPieces, Cut kCut>
HWY_INLINE void CutPairs(F32Vec even, F32Vec odd, WordVec* pieces) {
  const WordTag du;
  even = CutHeads<kPieces, kCut>(
      even, [&](int piece, WordVec bits) HWY_ATTR { pieces[piece] = hn::ShiftRight<16>(bits); });
  odd = CutHeads<kPieces, kCut>(
      odd, [&](int piece, WordVec bits) HWY_ATTR { pieces[piece] = hn::Or(pieces[piece], bits); });
  pieces[kPieces - 1] =
      hn::Or(hn::PromoteTo(du, ToBf16(even)), hn::ShiftLeft<16>(hn::PromoteTo(du, ToBf16(odd))));
}

template <class Body>
HWY_INLINE void WithPieces(int pieces, const Body& body) {
  if (pieces == 1) return body(std::integral_constant<int, 1>());
  if (pieces == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 3>());
}

#endif  // HWY_TARGET <= HWY_AVX3

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
