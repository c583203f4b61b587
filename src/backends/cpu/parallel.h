// Splitting work over the threads of a call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backends/cpu/team.h"

namespace kf::cpu {

// A parallel region costs microseconds: work of fewer elements than this is done by the calling thread.
inline constexpr std::int64_t kMinParallelElements = 16384;

// Calls body(begin, end, thread) over [0, count), in one contiguous range a thread. An item is `elements`
// elements of light work.
template <class Body>
void parallel_ranges(int num_threads, std::int64_t count, std::int64_t elements, const Body& body) {
  if (count <= 0) return;
  const bool small = count * std::max<std::int64_t>(elements, 1) < kMinParallelElements;
  const int team = small ? 1 : static_cast<int>(std::min<std::int64_t>(num_threads, count));
  if (team <= 1) return body(0, count, 0);
  run_team(team, [&](const Member& m) {
    body(count * m.thread / m.threads, count * (m.thread + 1) / m.threads, m.thread);
  });
}

}  // namespace kf::cpu
