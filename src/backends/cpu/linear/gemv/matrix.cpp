#include "backends/cpu/linear/gemv/matrix.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/simd/matrix_units.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemv/matrix.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/pieces-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {
using kf::HWY_NAMESPACE::First;
using kf::HWY_NAMESPACE::StoreF32;

#if HWY_TARGET <= HWY_AVX3

// Steps whose products are summed in the tile registers, so that rounding does not grow with the row.
constexpr std::int64_t kBlockSteps = 16;

void FillTokenTiles(const GemvInput& input, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const WordTag du;
  const hn::RebindToSigned<F32Tag> di;
  if (end == input.in) end = (end + kTileDepth - 1) / kTileDepth * kTileDepth;  // zeros lie there
  const auto present = hn::FirstN(d, static_cast<std::size_t>(input.num_tokens));
  const auto token = hn::Min(hn::Iota(di, 0), hn::Set(di, input.num_tokens - 1)),
             index = hn::Mul(token, hn::Set(di, static_cast<std::int32_t>(input.value_stride)));
  const auto values = [&](std::int64_t k) HWY_ATTR {
    return hn::IfThenElseZero(present, hn::GatherIndex(d, input.values + k, index));
  };
  WithPieces(input.pieces, [&]<int kPieces>(std::integral_constant<int, kPieces>) HWY_ATTR {
    for (std::int64_t k = begin; k < end; k += 2) {
      WordVec pieces[kPieces];
      // A weight of either sign that is not finite meets pieces of one sign.
      CutPairs<kPieces, kPieces == 1 ? Cut::nearest : Cut::same_sign>(values(k), values(k + 1), pieces);
      auto* const to = reinterpret_cast<std::uint32_t*>(input.tiles + k / kTileDepth * kPieces * kTileBytes) +
                       k % kTileDepth / 2 * kTokensOfTile;
      for (int piece = 0; piece < kPieces; ++piece)
        hn::StoreU(pieces[piece], du, to + piece * kTileBytes / 4);
    }
  });
}

void DotRowsOfTiles(const TensorView& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                    float* sums, std::size_t sums_stride) {
  const F32Tag d;
  const hn::RebindToSigned<F32Tag> di;
  const TileRegisters registers;
  const std::int64_t stride = weight.stride(0) * 2, whole_steps = input.in / kTileDepth,
                     steps = (input.in + kTileDepth - 1) / kTileDepth;
  const auto column = hn::Mul(hn::Iota(di, 0), hn::Set(di, 16));
  HWY_ALIGN float c[2 * 256], total[256];
  HWY_ALIGN char copied[kRowsOfTile * kBlockSteps * 64];
  for (std::int64_t row = begin; row < end; row += kRowsOfTile, sums += kRowsOfTile) {
    const std::int64_t count = std::min(kRowsOfTile, end - row);
    const char* const rows = weight.as<char>() + row * stride;
    const char* const ahead = row + 2 * kRowsOfTile <= end ? rows + kRowsOfTile * stride : rows;
    F32Vec acc[kRowsOfTile];
    for (F32Vec& v : acc) v = hn::Zero(d);
    for (std::int64_t s = 0; s < steps;) {
      const char* from = rows + s * 64;
      std::int64_t from_stride = stride, some = std::min(kBlockSteps, whole_steps - s);
      if (some == 0 || count < kRowsOfTile) {  // the rest of a step, or of a tile's rows, beside zeros
        some = std::min(kBlockSteps, steps - s);
        from_stride = kBlockSteps * 64;
        const std::int64_t bytes = std::min(some * 64, input.in * 2 - s * 64);
        std::memset(copied, 0, sizeof copied);
        for (std::int64_t r = 0; r < count; ++r)
          std::memcpy(copied + r * from_stride, from + r * stride, static_cast<std::size_t>(bytes));
        from = copied;
      }
      multiply_rows(from, from_stride, input.tiles + s * input.pieces * kTileBytes, input.pieces, some, c,
                    from == copied ? copied : ahead + s * 64);
      for (std::int64_t r = 0; r < kRowsOfTile; ++r)
        acc[r] = hn::Add(acc[r], hn::Add(hn::Load(d, c + r * 16), hn::Load(d, c + 256 + r * 16)));
      s += some;
    }
    for (std::int64_t r = 0; r < kRowsOfTile; ++r) hn::Store(acc[r], d, total + r * 16);
    for (int t = 0; t < input.num_tokens; ++t)
      StoreF32(d, hn::GatherIndex(d, total + t, column), sums + static_cast<std::size_t>(t) * sums_stride,
               First{static_cast<std::size_t>(count)});
  }
}

#else

// Never called: there are matrix units beside AVX-512 only.
void FillTokenTiles(const GemvInput&, std::int64_t, std::int64_t) {}
void DotRowsOfTiles(const TensorView&, const GemvInput&, std::int64_t, std::int64_t, float*, std::size_t) {}

#endif

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(FillTokenTiles);
HWY_EXPORT(DotRowsOfTiles);

std::size_t token_tile_bytes(std::int64_t in, int pieces) {
  return static_cast<std::size_t>((in + kTileDepth - 1) / kTileDepth * kTileBytes * pieces);
}

void fill_token_tiles(const GemvInput& input, std::int64_t begin, std::int64_t end) {
  HWY_DYNAMIC_DISPATCH(FillTokenTiles)(input, begin, end);
}

void dot_rows_of_tiles(const TensorView& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                       float* sums, std::size_t sums_stride) {
  HWY_DYNAMIC_DISPATCH(DotRowsOfTiles)(weight, input, begin, end, sums, sums_stride);
}

}  // namespace kf::cpu
#endif
