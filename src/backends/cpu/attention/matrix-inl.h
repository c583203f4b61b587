// Many query rows of bf16 on the processor's matrix units (simd/matrix_units.h): queries, keys and values are multiplied as they
// come, probabilities in two pieces of bf16. The other steps are those of the register tiles (tile-inl.h).
#if defined(KF_CPU_ATTENTION_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_ATTENTION_MATRIX_INL_H_
#undef KF_CPU_ATTENTION_MATRIX_INL_H_
#else
#define KF_CPU_ATTENTION_MATRIX_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "backends/cpu/attention/attend.h"
#include "backends/cpu/attention/tile-inl.h"
#include "backends/cpu/simd/matrix_units.h"
#include "backends/cpu/simd/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET <= HWY_AVX3

inline constexpr int kStep = static_cast<int>(kTileDepth), kHalf = 16, kElements = kTileBytes / 2;
static_assert(kRowBlock % (2 * kHalf) == 0 && kKeyBlock % kStep == 0);

HWY_INLINE int StepsOf(int n) { return RoundUp(n, kStep) / kStep; }

// A row of queries to its tiles, [16 rows][step][row][32]; zeros behind the last dimension.
HWY_INLINE void PlaceQuery(const Bf16* row, int r, int head_dim, AttentionScratch& s) {
  for (int i = 0; i < head_dim; i += kStep) {
    std::uint16_t* const to =
        s.query_tiles + (r / kHalf * StepsOf(head_dim) + i / kStep) * kElements + r % kHalf * kStep;
    const int count = std::min(kStep, head_dim - i);
    std::memcpy(to, row + i, static_cast<std::size_t>(count) * sizeof(Bf16));
    std::memset(to + count, 0, static_cast<std::size_t>(kStep - count) * sizeof(Bf16));
  }
}

// Where the rows of the block's columns lie.
HWY_INLINE void PlaceRows(const KvSource<Bf16>& source, std::int64_t head, int head_dim,
                          const AttentionScratch& s, const std::uint8_t** rows) {
  const std::int64_t stride = source.rows.token_stride;
  for (int i = 0; i < s.num_runs; ++i) {
    const KeyRun& keys = s.runs[i];
    source.rows.for_each_run(keys.key, keys.key + keys.count, head,
                             [&](std::int64_t first, std::int64_t run, std::int64_t offset) {
                               const Bf16* row = source.data + offset;
                               const std::uint8_t** to = rows + (first - keys.key + keys.column);
                               for (std::int64_t j = 0; j < run; ++j, row += stride) {
                                 PrefetchRow(row, head_dim);
                                 *to++ = reinterpret_cast<const std::uint8_t*>(row);
                               }
                             });
  }
}

// Keys to tiles [16 keys][step][16 pairs of dimensions][key][2]: pairs are words. Columns without a key have the last one's.
HWY_NOINLINE void KeysToTiles(const std::uint8_t** rows, int columns, int head_dim, std::uint16_t* to) {
  const WordTag du;
  for (int key = columns; key < RoundUp(columns, kStep); ++key) rows[key] = rows[columns - 1];
  for (int key = 0; key < RoundUp(columns, kStep); key += kHalf)
    for (int i = 0; i < StepsOf(head_dim) * kStep; i += 8, to += kElements / 4) {
      if (i >= head_dim) {
        std::memset(to, 0, kTileBytes / 4);
        continue;
      }
      const RowWords words = LoadWords(rows + key, static_cast<std::size_t>(2 * i));
      for (int w = 0; w < 4; ++w)
        hn::StoreU(words.w[w], du, reinterpret_cast<std::uint32_t*>(to + w * kStep));
    }
}

// Values to tiles [16 dimensions][step of keys][16 pairs of keys][dimension][2], zeros behind the last key. Whether all are finite.
HWY_NOINLINE bool ValuesToTiles(const std::uint8_t* const* rows, int columns, int head_dim,
                                std::uint16_t* to) {
  const WordTag du;
  const hn::Rebind<std::uint16_t, F32Tag> d16;
  const auto exponents = hn::Set(du, 0x7F807F80u);
  auto finite = hn::Set(du, 1u);
  const auto not_all_ones = [&](WordVec bits, std::uint32_t mask) HWY_ATTR {
    return hn::Ne(hn::And(bits, hn::Set(du, mask)), hn::Set(du, mask));
  };
  const int steps = StepsOf(columns);
  for (int key = 0; key < steps * kStep; key += 2)
    for (int i = 0; i < head_dim; i += kHalf) {
      const auto row = [&](int k) HWY_ATTR {
        if (k >= columns) return hn::Zero(du);
        const auto* const from = reinterpret_cast<const std::uint16_t*>(rows[k]) + i;
        if (i + kHalf <= head_dim) return hn::PromoteTo(du, hn::LoadU(d16, from));
        HWY_ALIGN std::uint16_t some[kHalf] = {};
        std::memcpy(some, from, static_cast<std::size_t>(head_dim - i) * sizeof *from);
        return hn::PromoteTo(du, hn::Load(d16, some));
      };
      const auto both = hn::Or(row(key), hn::ShiftLeft<16>(row(key + 1)));
      const auto ones = hn::And(both, exponents);
      finite =
          hn::IfThenElseZero(hn::And(not_all_ones(ones, 0x7F80u), not_all_ones(ones, 0x7F800000u)), finite);
      hn::StoreU(both, du,
                 reinterpret_cast<std::uint32_t*>(to + (i / kHalf * steps + key / kStep) * kElements +
                                                  key % kStep * kHalf));
    }
  return hn::AllTrue(du, hn::Eq(finite, hn::Set(du, 1u)));
}

// scores = factor * q k^T for the keys that any row of a tile may see.
HWY_NOINLINE void MatrixScores(int rows, int head_dim, float factor, AttentionScratch& s) {
  const F32Tag d;
  const int steps = StepsOf(head_dim);
  for (int r = 0; r < rows; r += 2 * kHalf) {
    const int last = std::min(r + 2 * kHalf, rows) - 1;
    const std::uint16_t* const a0 = s.query_tiles + r / kHalf * steps * kElements;
    for (int key = 0; key < s.columns; key += kStep) {
      if (key >= s.limit[last] || key + kStep <= s.first[r]) continue;
      const std::uint16_t* const b0 = s.key_tiles + key / kHalf * steps * kElements;
      multiply_tiles(a0, last - r >= kHalf ? a0 + steps * kElements : nullptr, 1, b0, b0 + steps * kElements,
                     1, steps, s.scores + r * kKeyBlock + key, kKeyBlock, false);
    }
    for (int row = r; row <= last; ++row)
      for (int i = s.first[row] / kHalf * kHalf; i < s.limit[row]; i += kHalf) {
        float* const at = s.scores + row * kKeyBlock + i;
        hn::Store(hn::Mul(hn::Load(d, at), hn::Set(d, factor)), d, at);
      }
  }
}

// out = out * rescale + probabilities v, where all values are finite.
HWY_NOINLINE void MatrixValues(int rows, int head_dim, AttentionScratch& s) {
  const F32Tag d;
  const hn::Rebind<std::uint16_t, F32Tag> d16;
  constexpr int kPieces = 2;
  const auto to_bf16 = [&](F32Vec v) HWY_ATTR {
    return kf::HWY_NAMESPACE::Narrow(d, v, kf::HWY_NAMESPACE::Bf16Converted{});
  };
  const int steps = StepsOf(s.columns);
  for (int r = 0; r < rows; r += 2 * kHalf) {
    const int last = std::min(r + 2 * kHalf, rows) - 1;
    if (s.first[r] >= s.limit[last]) continue;
    const int begin = s.first[r] / kStep, end = StepsOf(s.limit[last]);
    // Tiles [16 rows][step][piece][row][32]; no row has a probability before its first column.
    for (int row = r; row <= last; ++row)
      for (int i = begin * kStep; i < end * kStep; i += kHalf) {
        const auto p = i + kHalf <= s.first[row] ? hn::Zero(d) : hn::Load(d, s.scores + row * kKeyBlock + i);
        std::uint16_t* const to = s.probability_tiles +
                                  ((row - r) / kHalf * steps + i / kStep) * kPieces * kElements +
                                  (row - r) % kHalf * kStep + i % kStep;
        const auto head = to_bf16(p);
        hn::StoreU(head, d16, to);
        hn::StoreU(to_bf16(hn::Sub(p, kf::HWY_NAMESPACE::Widen(d, head, Bf16{}))), d16, to + kElements);
      }
    const std::uint16_t* const a0 = s.probability_tiles + begin * kPieces * kElements;
    for (int i = 0; i < head_dim; i += 2 * kHalf) {
      HWY_ALIGN float sums[4 * kHalf * kHalf];
      const std::uint16_t* const b0 = s.value_tiles + (i / kHalf * steps + begin) * kElements;
      const bool both = i + kHalf < head_dim;
      multiply_tiles(a0, last - r >= kHalf ? a0 + steps * kPieces * kElements : nullptr, kPieces, b0,
                     both ? b0 + steps * kElements : b0, 1, end - begin, sums, 2 * kHalf, false);
      for (int row = r; row <= last; ++row) {
        const auto factor = hn::Set(d, s.rescale[row]);
        for (int side = 0; side < (both ? 2 : 1); ++side) {
          float* const out = s.out + row * kOutStride + i + side * kHalf;
          const auto sum = hn::Load(d, sums + ((row - r) * 2 + side) * kHalf);
          hn::Store(hn::MulAdd(hn::Load(d, out), factor, sum), d, out);
        }
      }
    }
  }
}

#endif

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
