// Where values of limited life lie in one arena.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace kf {

inline constexpr std::size_t kArenaAlignment = 64;

// A block that is in use from step `first` to step `last`, both included.
struct BlockLife {
  std::size_t bytes = 0;
  int first = 0, last = 0;
};

struct MemoryPlan {
  std::vector<std::size_t> offsets;  // one a block, multiples of kArenaAlignment
  std::size_t arena_bytes = 0;
};

// Blocks whose lives overlap do not overlap in the arena. Largest first, each into the tightest gap that
// fits.
MemoryPlan plan_memory(std::span<const BlockLife> blocks);

}  // namespace kf
