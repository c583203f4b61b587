// One step of the online softmax (Milakov and Gimelshein, 2018): the scores of a block of keys become
// probabilities relative to the largest score so far, and the sums of earlier blocks get the factor that
// makes up for a new largest. Scores are in units of log2: the queries were multiplied by log2(e).
#if defined(KF_CPU_ATTENTION_ONLINE_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_ONLINE_SOFTMAX_INL_H_
#undef KF_CPU_ATTENTION_ONLINE_SOFTMAX_INL_H_
#else
#define KF_CPU_ATTENTION_ONLINE_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kf::HWY_NAMESPACE::ReduceMax;
using kf::HWY_NAMESPACE::ReduceSum;

// 2^x for x <= 0, within 2e-7 of itself; below 2^-126 zero; NaN stays NaN. Half the work of a general exp. Adding
// 1.5 * 2^23 + 127 leaves round(x) + 127, the biased exponent, in the low bits. The polynomial is the minimax one of the
// relative error (9.4e-8) for 2^f on |f| <= 1/2, with p(0) = 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2NonPositive(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V magic = hn::Set(d, 12582912.0f + 127.0f);
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  V p = hn::MulAdd(hn::Set(d, 0.0013269536f), f, hn::Set(d, 0.009671292f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.05550711f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.24022247f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693147f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

// Rows 0 .. rows - 1 of scratch.scores, of which columns first .. limit - 1 count, become probabilities, and zeros
// from there up to `columns`, which is a whole number of vectors. Updates row_max and row_sum, sets rescale.
HWY_INLINE void SoftmaxStep(int rows, int columns, AttentionScratch& s) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  using V = hn::Vec<decltype(d)>;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();

  // `rescale` holds the old maxima until all new ones are known, so that one vector serves many rows.
  for (int r = 0; r < rows; ++r) {
    float* const row = s.scores + r * kKeyBlock;
    const int limit = s.limit[r];
    const int begin = s.first[r] / lanes * lanes, whole = limit / lanes * lanes;
    if (begin < s.first[r]) {
      const auto before = hn::FirstN(d, static_cast<std::size_t>(s.first[r] - begin));
      hn::Store(hn::IfThenElse(before, hn::Set(d, -kInfinity), hn::Load(d, row + begin)), d, row + begin);
    }
    V largest = hn::Set(d, -kInfinity);
    for (int i = begin; i < whole; i += lanes) largest = hn::Max(hn::Load(d, row + i), largest);
    if (whole < limit) {
      const auto counts = hn::FirstN(d, static_cast<std::size_t>(limit - whole));
      const V last = hn::IfThenElse(counts, hn::Load(d, row + whole), hn::Set(d, -kInfinity));
      hn::Store(last, d, row + whole);
      largest = hn::Max(last, largest);
    }
    s.rescale[r] = s.row_max[r];
    s.row_max[r] = std::max(s.row_max[r], ReduceMax(d, largest));
  }
  // Where nothing was seen yet both maxima are -inf; their sums are zero, whatever they are multiplied by.
  for (int r = 0; r < rows; r += lanes) {
    const V now = hn::Load(d, s.row_max + r), before = hn::Load(d, s.rescale + r);
    const V factor = Exp2NonPositive(d, hn::Sub(before, now));
    hn::Store(hn::IfThenElse(hn::Eq(now, before), hn::Set(d, 1.0f), factor), d, s.rescale + r);
  }
  for (int r = 0; r < rows; ++r) {
    float* const row = s.scores + r * kKeyBlock;
    const int limit = s.limit[r];
    // A row of only -inf subtracts 0 and not -inf: its probabilities are zero and not NaN.
    const float row_max = s.row_max[r];
    const V shift = hn::Set(d, row_max == -kInfinity ? 0.0f : row_max);
    V sum = hn::Zero(d);
    int i = s.first[r] / lanes * lanes;
    for (; i < limit; i += lanes) {
      const V e = Exp2NonPositive(d, hn::Sub(hn::Load(d, row + i), shift));
      hn::Store(e, d, row + i);
      sum = hn::Add(sum, e);
    }
    for (; i < columns; i += lanes) hn::Store(hn::Zero(d), d, row + i);
    s.row_sum[r] = s.row_sum[r] * s.rescale[r] + ReduceSum(d, sum);
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
