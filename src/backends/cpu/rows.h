// Rows of a strided tensor, and what CPU kernels ask about them.
#pragma once

#include <cstdint>

#include "core/rows.h"

namespace kf::cpu {

// Whether a kernel that goes through a row several times is to fetch the next one meanwhile: not where two rows crowd
// each other out of the nearer caches.
inline bool fetches_next_row(const TensorView& t) { return t.dim(-1) <= std::int64_t{16} << 10; }

}  // namespace kf::cpu
