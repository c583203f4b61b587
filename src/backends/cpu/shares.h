// Units of work shared out among the threads of a team, each of which has a part of its own and then takes from the others'.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "backends/cpu/team.h"
#include "backends/cpu/workspace.h"

namespace kf::cpu {

// A thread takes its own part front to back, in ever smaller pieces, so that it reads memory in long streams; when that is done, it takes
// from what others have left. Threads whose memory is slower for a while (another load on the machine, pages that lie
// elsewhere) then keep nobody waiting for more than the smallest piece.
class Shares {
 public:
  // At most `num_threads` threads take part. To be made before their team is called, for one pass over the units.
  Shares(Workspace& space, int num_threads)
      : taken_(space.take<Taken>(static_cast<std::size_t>(num_threads))) {
    if (space.counting()) return;
    for (int i = 0; i < num_threads; ++i) new (&taken_[i]) Taken{0};
  }

  // Calls body(begin, end) for pieces of [0, count) until all are taken; `least` is the smallest piece.
  template <class Body>
  void take(std::int64_t count, std::int64_t least, const Member& member, const Body& body) const {
    const std::int64_t thread = member.thread, threads = member.threads;
    if (threads == 1) return body(0, count);
    for (std::int64_t i = 0; i < threads; ++i) {
      const std::int64_t owner = (thread + i) % threads;
      const std::int64_t first = count * owner / threads, size = count * (owner + 1) / threads - first;
      std::atomic<std::int64_t>& taken = taken_[owner].units;
      for (std::int64_t begin = taken.load(std::memory_order_relaxed); begin < size;) {
        // Of its own a thread takes half of what is left, of another's what the two do in equal parts.
        const std::int64_t end = std::min(size, begin + std::max((size - begin) / 2, least));
        if (!taken.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        body(first + begin, first + end);
        begin = end;
      }
    }
  }

 private:
  struct alignas(64) Taken {
    std::atomic<std::int64_t> units;
  };
  Taken* taken_;
};

}  // namespace kf::cpu
