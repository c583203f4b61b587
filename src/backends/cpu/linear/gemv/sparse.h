// Dot products of few tokens with the rows of a sparse weight: masks and values are streamed once and expanded in
// registers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/linear/gemv/dot.h"
#include "core/sparse.h"

namespace kf::cpu {

// As dot_rows(); only input.values is read.
void dot_sparse_rows(const Weight& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                     float* sums, std::size_t sums_stride);

}  // namespace kf::cpu
