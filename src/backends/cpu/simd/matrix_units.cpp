#include "backends/cpu/simd/matrix_units.h"

#include <cstddef>
#include <iterator>
#include <utility>

// Compiled with -mamx-tile -mamx-bf16.
#if defined(__AMX_BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kf::cpu {

bool has_matrix_units() {
  static const bool has = [] {
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    unsigned a = 7, b = 0, c = 0, d = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool tiles = (d >> 24 & 1) != 0, bf16 = (d >> 22 & 1) != 0;
    // Linux: ARCH_REQ_XCOMP_PERM for the state component of the tiles' data. Of the process: threads inherit it.
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return tiles && bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
}

namespace {

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes_of_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kShapes;

// A product of a piece of A and one of B.
struct Product {
  int a, b;
};
// Those besides the product of the first pieces, in an order that loads few tiles anew. The last piece of A is
// multiplied with the first one of B alone: infinities are there.
template <int kPiecesA, int kPiecesB>
struct Rest;
template <>
struct Rest<1, 1> {
  static constexpr Product kProducts[] = {{-1, -1}};
};
template <>
struct Rest<1, 2> {
  static constexpr Product kProducts[] = {{0, 1}};
};
template <>
struct Rest<1, 3> {
  static constexpr Product kProducts[] = {{0, 2}, {0, 1}};
};
template <>
struct Rest<2, 1> {
  static constexpr Product kProducts[] = {{1, 0}};
};
template <>
struct Rest<2, 2> {
  static constexpr Product kProducts[] = {{0, 1}, {1, 0}};
};
template <>
struct Rest<2, 3> {
  static constexpr Product kProducts[] = {{0, 2}, {0, 1}, {1, 0}};
};
template <>
struct Rest<3, 1> {
  static constexpr Product kProducts[] = {{2, 0}, {1, 0}};
};
template <>
struct Rest<3, 2> {
  static constexpr Product kProducts[] = {{0, 1}, {1, 1}, {1, 0}, {2, 0}};
};
template <>
struct Rest<3, 3> {
  static constexpr Product kProducts[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}};
};

// Tiles 0 to 3 are C, 4 and 5 of A, 6 and 7 of B.
template <bool kBothRows>
[[gnu::always_inline]] inline void load_a(const char* a0, const char* a1) {
  _tile_loadd(4, a0, 64);
  if constexpr (kBothRows) _tile_loadd(5, a1, 64);
}
[[gnu::always_inline]] inline void load_b(const char* b0, const char* b1) {
  _tile_loadd(6, b0, 64);
  _tile_loadd(7, b1, 64);
}
template <bool kBothRows>
[[gnu::always_inline]] inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kBothRows) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The i-th product of a step, where what it shares with the one before is loaded.
template <class Products, std::size_t i, bool kBothRows>
[[gnu::always_inline]] inline void add_product(const char* a0, const char* a1, const char* b0,
                                               const char* b1) {
  constexpr Product p = Products::kProducts[i];
  constexpr Product before = i > 0 ? Products::kProducts[i > 0 ? i - 1 : 0] : Product{-1, -1};
  if constexpr (p.a != before.a) load_a<kBothRows>(a0 + p.a * kTileBytes, a1 + p.a * kTileBytes);
  if constexpr (p.b != before.b) load_b(b0 + p.b * kTileBytes, b1 + p.b * kTileBytes);
  add_products<kBothRows>();
}

template <int kPiecesA, int kPiecesB, bool kBothRows>
void multiply(const char* a0, const char* a1, const char* b0, const char* b1, std::int64_t steps, float* c,
              std::int64_t stride, bool accumulate) {
  const auto row = static_cast<std::size_t>(stride) * sizeof(float);
  float* const lower = c + 16 * stride;
  constexpr std::int64_t kRight = 16;
  constexpr std::int64_t kStepA = kPiecesA * kTileBytes, kStepB = kPiecesB * kTileBytes;
  if (accumulate) {
    _tile_loadd(0, c, row);
    _tile_loadd(1, c + kRight, row);
    if constexpr (kBothRows) {
      _tile_loadd(2, lower, row);
      _tile_loadd(3, lower + kRight, row);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kBothRows) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  // The small products of all steps first: what rounds while they are summed is small, too.
  if constexpr (kPiecesA * kPiecesB > 1) {
    using Products = Rest<kPiecesA, kPiecesB>;
    for (std::int64_t s = 0; s < steps; ++s) [&]<std::size_t... i>(std::index_sequence<i...>) {
        (add_product<Products, i, kBothRows>(a0 + s * kStepA, a1 + s * kStepA, b0 + s * kStepB,
                                             b1 + s * kStepB),
         ...);
      }
    (std::make_index_sequence<std::size(Products::kProducts)>());
  }
  for (std::int64_t s = 0; s < steps; ++s) {
    load_a<kBothRows>(a0 + s * kStepA, a1 + s * kStepA);
    load_b(b0 + s * kStepB, b1 + s * kStepB);
    add_products<kBothRows>();
  }
  _tile_stored(0, c, row);
  _tile_stored(1, c + kRight, row);
  if constexpr (kBothRows) {
    _tile_stored(2, lower, row);
    _tile_stored(3, lower + kRight, row);
  }
}

using Multiply = void (*)(const char*, const char*, const char*, const char*, std::int64_t, float*,
                          std::int64_t, bool);
template <bool kBothRows>
constexpr Multiply kMultiply[kMaxPieces][kMaxPieces] = {
    {multiply<1, 1, kBothRows>, multiply<1, 2, kBothRows>, multiply<1, 3, kBothRows>},
    {multiply<2, 1, kBothRows>, multiply<2, 2, kBothRows>, multiply<2, 3, kBothRows>},
    {multiply<3, 1, kBothRows>, multiply<3, 2, kBothRows>, multiply<3, 3, kBothRows>}};

// Tiles 0 and 1 are C, 2 and 3 rows, 4 to 6 of x.
template <int kPieces>
void multiply_rows(const char* rows, std::int64_t stride, const char* x, std::int64_t steps, float* c,
                   const char* ahead) {
  const auto row = static_cast<std::size_t>(stride);
  const auto ask = [&](std::int64_t step) {
    for (std::int64_t r = 0; r < 16; ++r) _mm_prefetch(ahead + r * stride + step * 64, _MM_HINT_T1);
  };
  _tile_zero(0);
  _tile_zero(1);
  std::int64_t s = 0;
  if constexpr (kPieces == 1) {
    for (; s + 2 <= steps; s += 2, x += 2 * kTileBytes) {
      _tile_loadd(2, rows + s * 64, row);
      _tile_loadd(4, x, 64);
      _tile_dpbf16ps(0, 2, 4);
      ask(s);
      _tile_loadd(3, rows + (s + 1) * 64, row);
      _tile_loadd(5, x + kTileBytes, 64);
      _tile_dpbf16ps(1, 3, 5);
      ask(s + 1);
    }
  }
  for (; s < steps; ++s, x += kPieces * kTileBytes) {
    _tile_loadd(2, rows + s * 64, row);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(0, 2, 4);
    if constexpr (kPieces > 2) {
      _tile_loadd(6, x + 2 * kTileBytes, 64);
      _tile_dpbf16ps(1, 2, 6);
    }
    if constexpr (kPieces > 1) {
      _tile_loadd(5, x + kTileBytes, 64);
      _tile_dpbf16ps(1, 2, 5);
    }
    ask(s);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + 256, 64);
}

}  // namespace

TileRegisters::TileRegisters() { _tile_loadconfig(&kShapes); }
TileRegisters::~TileRegisters() { _tile_release(); }

void multiply_tiles(const void* a0, const void* a1, int pieces_a, const void* b0, const void* b1,
                    int pieces_b, std::int64_t steps, float* c, std::int64_t stride, bool accumulate) {
  const Multiply multiply = a1 != nullptr ? kMultiply<true>[pieces_a - 1][pieces_b - 1]
                                          : kMultiply<false>[pieces_a - 1][pieces_b - 1];
  multiply(static_cast<const char*>(a0), static_cast<const char*>(a1), static_cast<const char*>(b0),
           static_cast<const char*>(b1), steps, c, stride, accumulate);
}

void multiply_rows(const void* rows, std::int64_t stride, const void* x, int pieces, std::int64_t steps,
                   float* c, const void* ahead) {
  constexpr decltype(&multiply_rows<1>) kOfPieces[kMaxPieces] = {multiply_rows<1>, multiply_rows<2>,
                                                                 multiply_rows<3>};
  kOfPieces[pieces - 1](static_cast<const char*>(rows), stride, static_cast<const char*>(x), steps, c,
                        static_cast<const char*>(ahead));
}

}  // namespace kf::cpu

#else

namespace kf::cpu {

bool has_matrix_units() { return false; }
// Never called without them.
TileRegisters::TileRegisters() = default;
TileRegisters::~TileRegisters() = default;
void multiply_tiles(const void*, const void*, int, const void*, const void*, int, std::int64_t, float*,
                    std::int64_t, bool) {}
void multiply_rows(const void*, std::int64_t, const void*, int, std::int64_t, float*, const void*) {}

}  // namespace kf::cpu

#endif
