// Products with sparse weights alone, for many tokens: what is not stored is not multiplied.
//
// The lanes of a vector are tokens: x lies in wide panels, [in][tokens] (PackedRows::wide), and a value of the weight is
// multiplied with the panel's vectors at its column. Some columns of an item's features at a time are listed as (place in
// the panel, value), once for all panels; the panel's part for those columns stays in the first cache meanwhile.
#if defined(KF_CPU_LINEAR_GEMM_SPARSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_CPU_LINEAR_GEMM_SPARSE_INL_H_
#undef KF_CPU_LINEAR_GEMM_SPARSE_INL_H_
#else
#define KF_CPU_LINEAR_GEMM_SPARSE_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backends/cpu/linear/epilogue-inl.h"
#include "backends/cpu/linear/gemm.h"
#include "backends/cpu/linear/sparse-inl.h"
#include "core/quantized.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns that are listed at a time, which is a chain of additions: 64 tokens of x in them fill a first cache of 32 KB. Half
// of them where the values are many, and the lists take more than x.
inline constexpr std::int64_t kListedColumns = 128;
inline constexpr double kManyValues = 0.35;  // of the elements
inline constexpr std::size_t kMaxFeatures = 2 * kMaxPairsPerItem * hn::MaxLanes(F32Tag());
static_assert(2 * (kListedColumns + kSparseColumns) <= kMaxDepth);

// Values of some columns of features, and where in a panel each is multiplied; a feature's follow another's.
struct SparseLists {
  std::int32_t* place;  // in floats from the first column's on
  float* value;
  std::int32_t begin[kMaxFeatures + 1];

  // In the memory of an item's strips.
  explicit HWY_INLINE SparseLists(float* memory)
      : place(reinterpret_cast<std::int32_t*>(memory)),
        value(memory + kMaxDepth / 2 * static_cast<std::int64_t>(kMaxFeatures)) {}
  // Of one feature.
  HWY_INLINE SparseLists(std::int32_t* place, float* value, std::int32_t count)
      : place(place), value(value), begin{0, count} {}
};

// Of a word's columns that have a value the places, `first` that of its first column and `width` from one to the next.
// Returns how many they are; whole vectors are written.
HWY_INLINE std::int64_t ListPlaces(std::uint32_t bits, std::int32_t first, std::int32_t width,
                                   std::int32_t* HWY_RESTRICT to) {
  const hn::RebindToSigned<F32Tag> di;
  constexpr std::size_t kLanes = kSparseLanes;
  const auto places = hn::Mul(hn::Iota(di, 0), hn::Set(di, width));
  std::int64_t count = 0;
#pragma GCC unroll 8
  for (std::size_t v = 0; v < static_cast<std::size_t>(kSparseColumns) / kLanes; ++v) {
    const std::uint32_t part = bits >> (v * kLanes) & ((1u << kLanes) - 1);
    const std::uint64_t bytes = part;  // as many as a mask may be read from
    const auto base = hn::Set(di, first + static_cast<std::int32_t>(v * kLanes) * width);
    const auto kept = hn::CompressBits(hn::Add(base, places), reinterpret_cast<const std::uint8_t*>(&bytes));
    hn::StoreU(kept, di, to + count);
    count += std::popcount(part);
  }
  return count;
}

// What a feature has in columns [k, k + depth) goes to `place` and `value`. Returns how much that is.
template <DType kType>
HWY_INLINE std::int64_t ListFeature(SparseRow<kType>& row, const Weight& w, const ScaleGrid& grid,
                                    std::int64_t feature, std::int64_t k, std::int64_t depth,
                                    std::int64_t wide, std::int32_t* place, float* value) {
  using Values = SparseValues<kType>;
  const auto width = static_cast<std::int32_t>(wide);
  std::int64_t count = 0, group = -1;
  SparseScale scale;
  for (std::int64_t c = 0; c < depth; c += kSparseColumns) {
    if constexpr (Values::kScaled) {
      if (const std::int64_t here = (k + c) / grid.columns; here != group) {
        group = here;
        scale = ScaleOf(w, grid, feature, group);
      }
    }
    std::uint32_t bits = mask_bits(row.mask, row.mask_bytes, k + c);
    // Whatever the mask, no place lies outside of the panel.
    if (depth - c < kSparseColumns) bits &= (1u << (depth - c)) - 1;
    NextValues<kType>(row, std::popcount(bits), scale, value + count);
    count += ListPlaces(bits, static_cast<std::int32_t>(c) * width, width, place + count);
  }
  // The next columns' are asked for: features are so many that the processor does not see that they go on.
  __builtin_prefetch(Values::Address(row.first, row.at) + 64, 0, 2);
  __builtin_prefetch(Values::Address(row.first, row.at + count), 0, 2);
  __builtin_prefetch(row.mask + (k + depth) / 8 + 64, 0, 2);
  return count;
}

// Lists a strip of features, the first the `first`-th of the item, `next[i]` being where a feature's values go on.
template <DType kType>
HWY_INLINE void ListStripOf(const Weight& w, std::int64_t strip, std::int64_t first, std::int64_t k,
                            std::int64_t depth, std::int64_t wide, std::int64_t* next, SparseLists& lists) {
  constexpr auto kLanes = static_cast<std::int64_t>(kSparseLanes);
  const std::int64_t present = std::min(kLanes, w.layout.dim(0) - strip * kLanes);
  const ScaleGrid grid = SparseValues<kType>::kScaled ? scale_grid(w.layout, w.quantization) : ScaleGrid{};
  SparseRow<kType> row;
  const auto* const values = w.layout.template as<const std::uint8_t>();
  const auto* const mask = w.sparsity.mask.template as<const std::uint8_t>();
  const auto fetch = [&](std::int64_t i) HWY_ATTR {
    if (i >= present) return;
    const std::int64_t feature = strip * kLanes + i;
    if (k == 0) next[first + i] = first_value(w.layout, w.sparsity, feature);
    const auto* const from = SparseValues<kType>::Address(values, next[first + i]);
    __builtin_prefetch(mask + feature * w.sparsity.mask.stride(0) + k / 8);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(from + 64 * line);
  };
  constexpr std::int64_t kAhead = 6;
  for (std::int64_t i = 0; i < kAhead; ++i) fetch(i);
  for (std::int64_t i = first; i < first + kLanes; ++i) {
    const std::int32_t begin = lists.begin[i];
    lists.begin[i + 1] = begin;
    if (i - first >= present) continue;
    const std::int64_t feature = strip * kLanes + i - first;
    fetch(i - first + kAhead);
    row.GoOn(w, feature, next[i]);
    lists.begin[i + 1] += static_cast<std::int32_t>(
        ListFeature<kType>(row, w, grid, feature, k, depth, wide, lists.place + begin, lists.value + begin));
    next[i] = row.at;
  }
}
HWY_NOINLINE void ListStrip(const Weight& w, std::int64_t strip, std::int64_t first, std::int64_t k,
                            std::int64_t depth, std::int64_t wide, std::int64_t* next, SparseLists& lists) {
  WithSparseDType(w.layout.dtype, [&]<DType kType>(std::integral_constant<DType, kType>) HWY_ATTR {
    ListStripOf<kType>(w, strip, first, k, depth, wide, next, lists);
  });
}

// sums[i] (+)= the products of feature f + i, for kFeatures of them together, so that their chains of additions overlap.
template <std::size_t kVectors, std::size_t kFeatures>
HWY_INLINE void AddListed(const SparseLists& lists, std::int64_t f, const float* HWY_RESTRICT panel,
                          std::int64_t wide, float* HWY_RESTRICT sums, bool accumulate) {
  const F32Tag d;
  const std::size_t lanes = hn::Lanes(d);
  F32Vec acc[kFeatures][kVectors];
  const std::int32_t* place[kFeatures];
  const float* value[kFeatures];
  std::int32_t count[kFeatures], common = 0;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kFeatures; ++i) {
    const std::int32_t* const begin = lists.begin + f + static_cast<std::int64_t>(i);
    place[i] = lists.place + begin[0];
    value[i] = lists.value + begin[0];
    count[i] = begin[1] - begin[0];
    common = i == 0 ? count[0] : std::min(common, count[i]);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) acc[i][v] = hn::Zero(d);
  }
  const auto add = [&](std::size_t i, std::int64_t j) HWY_ATTR {
    const float* const x = panel + place[i][j];
    const F32Vec w = hn::Set(d, value[i][j]);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v)
      acc[i][v] = hn::MulAdd(w, hn::Load(d, x + v * lanes), acc[i][v]);
  };
#pragma GCC unroll 2
  for (std::int64_t j = 0; j < common; ++j)
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kFeatures; ++i) add(i, j);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kFeatures; ++i) {
    for (std::int64_t j = common; j < count[i]; ++j) add(i, j);
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* const to = sums + static_cast<std::int64_t>(i) * wide + v * lanes;
      hn::Store(accumulate ? hn::Add(hn::Load(d, to), acc[i][v]) : acc[i][v], d, to);
    }
  }
}

// The same of one feature with the columns that have no value as well, as zeros: for an x that is not finite, whose product
// with 0 is NaN.
template <std::size_t kVectors>
HWY_NOINLINE void AddAllColumns(const SparseLists& lists, std::int64_t f, const float* panel,
                                std::int64_t depth, std::int64_t wide, float* sums, bool accumulate) {
  float memory[kListedColumns] = {};
  std::int32_t places[kListedColumns];
  for (std::int64_t c = 0; c < depth; ++c) places[c] = static_cast<std::int32_t>(c * wide);
  for (std::int32_t j = lists.begin[f]; j < lists.begin[f + 1]; ++j)
    memory[lists.place[j] / wide] = lists.value[j];
  const SparseLists all(places, memory, static_cast<std::int32_t>(depth));
  AddListed<kVectors, 1>(all, 0, panel, wide, sums, accumulate);
}

// Whether some columns of a panel have an infinity or NaN. It also brings them into the first cache.
template <std::size_t kVectors>
HWY_INLINE bool HasSpecials(const float* panel, std::int64_t depth, std::int64_t wide) {
  const F32Tag d;
  F32Vec none = hn::Zero(d);
  for (std::int64_t c = 0; c < depth; ++c, panel += wide)
#pragma GCC unroll 8
    for (std::size_t v = 0; v < kVectors; ++v)
      none = hn::MulAdd(hn::Load(d, panel + v * hn::Lanes(d)), hn::Zero(d), none);
  return !hn::AllTrue(d, hn::Eq(none, hn::Zero(d)));
}

// All features of the item times a panel.
template <std::size_t kVectors>
HWY_NOINLINE void MultiplyPanel(const SparseLists& lists, std::int64_t features, const float* panel,
                                std::int64_t depth, std::int64_t wide, float* sums, bool accumulate) {
  constexpr std::size_t kFeatures = kVectors == 1 ? 4 : kVectors <= 3 ? 2 : 1;
  if (HWY_UNLIKELY(HasSpecials<kVectors>(panel, depth, wide))) {
    for (std::int64_t f = 0; f < features; ++f, sums += wide)
      AddAllColumns<kVectors>(lists, f, panel, depth, wide, sums, accumulate);
    return;
  }
  for (std::int64_t f = 0; f < features; f += kFeatures, sums += static_cast<std::int64_t>(kFeatures) * wide)
    AddListed<kVectors, kFeatures>(lists, f, panel, wide, sums, accumulate);
}
template <std::size_t kVectors = kMaxWideVectors>
HWY_INLINE void MultiplyPanelOf(std::size_t vectors, const SparseLists& lists, std::int64_t features,
                                const float* panel, std::int64_t depth, std::int64_t wide, float* sums,
                                bool accumulate) {
  if constexpr (kVectors > 0) {
    if (vectors == kVectors)
      return MultiplyPanel<kVectors>(lists, features, panel, depth, wide, sums, accumulate);
    return MultiplyPanelOf<kVectors - 1>(vectors, lists, features, panel, depth, wide, sums, accumulate);
  }
}

// What becomes of the sums of a pair, [2 lanes features][wide], for `rows` rows of the pass.

// hidden, which is wide, too.
HWY_INLINE void FinishWide(const GateEpilogue& e, std::int64_t pair, std::int64_t row_begin,
                           std::int64_t rows, std::int64_t wide, const float* sums) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t column = pair * lanes, block = column / e.hidden.blocks.depth;
  float* to = e.hidden.panel(block, row_begin) + (column - block * e.hidden.blocks.depth) * wide;
  for (std::int64_t f = 0; f < lanes; ++f, sums += wide, to += wide)
    for (std::int64_t r = 0; r < rows; r += lanes) {
      const auto gate = Activated(e.activation, hn::Load(d, sums + r));
      hn::Store(hn::Mul(gate, hn::Load(d, sums + lanes * wide + r)), d, to + r);
    }
}
template <class Epilogue>
HWY_INLINE void FinishWide(const Epilogue& e, std::int64_t pair, std::int64_t row_begin, std::int64_t rows,
                           std::int64_t wide, const float* sums) {
  constexpr std::int64_t kRows = 8;
  constexpr auto kFeatures = static_cast<std::int64_t>(2 * hn::MaxLanes(F32Tag()));
  HWY_ALIGN float lines[kRows * kFeatures];
  for (std::int64_t r = 0; r < rows; r += kRows) {
    const std::int64_t some = std::min(kRows, rows - r);
    LinesToColumns(sums + r, wide, kFeatures, ceil_div(some, 4) * 4, lines, kFeatures);
    Finish(e, pair, row_begin + r, some, lines);
  }
}

template <class Epilogue>
void MultiplySparse(const GemmItem& item, const Epilogue& epilogue) {
  constexpr auto kLanes = static_cast<std::int64_t>(kSparseLanes);
  const std::int64_t wide = item.a.layout.wide, features = (item.pair_end - item.pair_begin) * 2 * kLanes;
  const std::int64_t item_rows = item.row_end - item.row_begin;
  const Blocks& blocks = item.a.blocks;
  std::int64_t next[kMaxFeatures];
  SparseLists lists(item.strips);
  std::int64_t listed = kListedColumns;
  for (int side = 0; side < 2; ++side) {
    const StripOf of = StripAt(epilogue, item.pair_begin, side);
    if (of.weight != nullptr && ShareStored(*of.weight) > kManyValues) listed = kListedColumns / 2;
  }
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    const std::int64_t k_begin = block * blocks.depth, depth = std::min(blocks.depth, blocks.in - k_begin);
    for (std::int64_t k = 0; k < depth || k == 0; k += listed) {
      const std::int64_t columns = std::min(listed, depth - k);
      lists.begin[0] = 0;
      for (std::int64_t i = 0; i < features; i += kLanes) {
        const StripOf of = StripAt(epilogue, item.pair_begin + i / (2 * kLanes), i / kLanes % 2);
        if (of.weight != nullptr)
          ListStrip(*of.weight, of.strip, i, k_begin + k, columns, wide, next, lists);
        else
          std::fill_n(lists.begin + i + 1, kLanes, lists.begin[i]);
      }
      for (std::int64_t row = 0; row < item_rows; row += wide) {
        const std::int64_t vectors = ceil_div(std::min(wide, item_rows - row), kLanes);
        MultiplyPanelOf(static_cast<std::size_t>(vectors), lists, features,
                        item.a.panel(block, item.row_begin + row) + k * wide, columns, wide,
                        item.sums + row * features, block > 0 || k > 0);
      }
    }
  }
  for (std::int64_t row = 0; row < item_rows; row += wide)
    for (std::int64_t pair = item.pair_begin; pair < item.pair_end; ++pair)
      FinishWide(epilogue, pair, item.row_begin + row, std::min(wide, item_rows - row), wide,
                 item.sums + row * features + (pair - item.pair_begin) * 2 * kLanes * wide);
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
