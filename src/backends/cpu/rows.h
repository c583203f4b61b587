// Rows of a strided tensor, and what CPU kernels ask about them.
#pragma once

#include <cstdint>

#include "core/rows.h"

namespace kf::cpu {

// `t` with the shape of `like`, as NumPy broadcasts it: of size 1, or missing in front, it does not step.
inline TensorView broadcast_to(const TensorView& t, const TensorView& like) {
  TensorView b = t;
  b.rank = like.rank;
  b.shape = like.shape;
  b.strides = {};
  for (int i = 1; i <= t.rank; ++i)
    if (t.dim(-i) != 1) b.strides[like.rank - i] = t.stride(-i);
  return b;
}

// Whether a kernel that goes through a row several times is to fetch the next one meanwhile: not where two rows crowd
// each other out of the nearer caches.
inline bool fetches_next_row(const TensorView& t) { return t.dim(-1) <= std::int64_t{16} << 10; }

}  // namespace kf::cpu
