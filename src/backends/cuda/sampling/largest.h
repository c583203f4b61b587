// The last step of a search that several blocks or warps share: the largest of what each has found.
#pragma once

#include <cstdint>

#include "kf/kernel.h"
#include "kf/tensor.h"

namespace kf::cuda {

// Where a row's result goes.
struct LargestOut {
  std::int32_t* ids;
  float* max;  // or null
  std::int64_t ids_stride, max_stride;

  static LargestOut of(const TensorView& ids, const TensorView& max) {
    return {ids.as<std::int32_t>(), max.present() ? max.as<float>() : nullptr, ids.stride(0),
            max.present() ? max.stride(0) : 0};
  }
};

// Of `count` parts a row, each as ranked() makes it or 0.
struct LargestParts {
  const std::uint64_t* parts;
  int count;
  std::int64_t part_stride, row_stride;
  LargestOut out;
};
void combine_largest(const LargestParts& p, std::int64_t rows, const TensorView& on, const RunContext& ctx);

}  // namespace kf::cuda
