// Runs of contiguous elements through an elementwise function.
#pragma once

#include <cstdint>

#include "kf/ops/elementwise.h"

namespace kf::cpu {

// n elements of one activation dtype; with `stream`, `out` is written past the caches.
struct Elements {
  const void* a = nullptr;
  const void* b = nullptr;
  void* out = nullptr;
  std::int64_t n = 0;
  DType dtype{};
  bool stream = false;
};

void binary_elements(BinaryKind kind, const Elements& e);      // out = a + b, a * b
void activation_elements(Activation kind, const Elements& e);  // out = act(a)
void gated_elements(Activation kind, const Elements& e);       // out = act(a) * b

}  // namespace kf::cpu
