// A contiguous run of elements from one dtype to another.
#pragma once

#include <cstdint>

#include "backends/cpu/workspace.h"
#include "kf/tensor.h"

namespace kf::cpu {

// `from` is any float dtype or block format (n a multiple of its block), `to` is f32, f16 or bf16. Equal
// dtypes are copied; others go through f32 and are rounded once.
void convert_row(DType from, const void* src, DType to, void* dst, std::int64_t n);

// A contiguous vector of any float dtype in f32: where it lies, or widened to the next part of the workspace; null
// where it is absent.
inline const float* widen(const TensorView& t, Workspace& parts) {
  if (!t.present()) return nullptr;
  if (t.dtype == DType::f32) return t.as<float>();
  float* const wide = parts.take<float>(static_cast<std::size_t>(t.numel()));
  if (!parts.counting()) convert_row(t.dtype, t.data, DType::f32, wide, t.numel());
  return wide;
}

}  // namespace kf::cpu
