// A contiguous run of elements from one dtype to another.
#pragma once

#include <cstdint>

#include "backends/cpu/workspace.h"
#include "kf/tensor.h"

namespace kf::cpu {

// `from` is any float dtype or block format (n a multiple of its block), `to` is f32, f16 or bf16. Equal
// dtypes are copied; others go through f32 and are rounded once.
void convert_row(DType from, const void* src, DType to, void* dst, std::int64_t n);

// A contiguous vector of any float dtype in f32, plus an offset: where it lies, or made in the next part of the
// workspace; null where it is absent.
inline const float* widen(const TensorView& t, Workspace& parts, float offset = 0.0f) {
  if (!t.present()) return nullptr;
  if (t.dtype == DType::f32 && offset == 0.0f) return t.as<float>();
  const std::int64_t n = t.numel();
  float* const wide = parts.take<float>(static_cast<std::size_t>(n));
  if (parts.counting()) return wide;
  convert_row(t.dtype, t.data, DType::f32, wide, n);
  if (offset != 0.0f)
    for (std::int64_t i = 0; i < n; ++i) wide[i] += offset;
  return wide;
}

}  // namespace kf::cpu
