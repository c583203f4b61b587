// Rows of bytes that lie anywhere as vectors of words, a row a lane.
#if defined(KF_SIMD_WORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_WORDS_INL_H_
#undef KF_SIMD_WORDS_INL_H_
#else
#define KF_SIMD_WORDS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "backends/cpu/simd/load_store-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::F32Tag;

using WordTag = hn::RebindToUnsigned<F32Tag>;
using WordVec = hn::Vec<WordTag>;

// Sixteen bytes at `at` of the rows first, first + 4, first + 8, ...: as many as fill a vector.
template <class D>
HWY_INLINE hn::Vec<D> LoadRows(D d, const std::uint8_t* const* rows, std::size_t at) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(d, reinterpret_cast<const std::uint32_t*>(rows[0] + at));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadRows(half, rows + hn::MaxLanes(half), at), LoadRows(half, rows, at));
  }
}

// Four words of every row, one row a lane.
struct RowWords {
  WordVec w[4];
};
HWY_INLINE RowWords LoadWords(const std::uint8_t* const* rows, std::size_t at) {
  const WordTag d;
  const hn::Repartition<std::uint64_t, WordTag> pairs;
  const auto r0 = LoadRows(d, rows, at), r1 = LoadRows(d, rows + 1, at), r2 = LoadRows(d, rows + 2, at),
             r3 = LoadRows(d, rows + 3, at);
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1)),
             low23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3)),
             high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1)),
             high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  return {{hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23)),
           hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23)),
           hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23)),
           hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23))}};
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
