// When outputs are written past the caches.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "kf/tensor.h"

namespace kf::cpu {

// An output of this size will not be found in a cache by who reads it next; writing past the caches saves reading its
// lines first.
inline constexpr std::size_t kStreamBytes = std::size_t{32} << 20;

// Not where the output lies over an input: its lines are in the cache already.
inline bool streams(const TensorView& out, std::initializer_list<const TensorView*> inputs) {
  for (const TensorView* t : inputs)
    if (t->data == out.data) return false;
  return out.nbytes() >= kStreamBytes;
}

}  // namespace kf::cpu
