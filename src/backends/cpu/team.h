// The threads of a call, and teams of threads that stay through many calls.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <omp.h>

#include "kf/backend.h"

namespace kf::cpu {

// Asks the nearer caches for ranges of memory, a piece at a time.
class Prefetch {
 public:
  Prefetch() = default;
  explicit Prefetch(std::span<const MemoryRange> ranges) : ranges_(ranges) {}
  bool next();  // asks for the next few lines; false: for all there were

 private:
  static constexpr std::size_t kMostBytes = 256 << 10;  // so much of a second-level cache, at most
  std::span<const MemoryRange> ranges_;
  std::size_t offset_ = 0, asked_ = 0;
};

// Where the threads of a team meet, and take numbers in between.
class Meeting {
 public:
  void wait(int threads, std::span<const MemoryRange> next);  // until that many have come
  std::int64_t next() {
    return next_.fetch_add(1, std::memory_order_relaxed);
  }  // 0, 1, ... anew after each wait()

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
  alignas(64) std::atomic<std::int64_t> next_{0};
};

// One thread of a team at work. All members come to each meet() and deal(), in one order.
struct Member {
  int thread, threads;
  Meeting* meeting;

  // `next`: what this member reads after it.
  void meet(std::span<const MemoryRange> next = {}) const {
    if (threads > 1) meeting->wait(threads, next);
  }
  // Calls body(i) for i of [0, count), each by the member that is free first. Ends with a meet().
  template <class Body>
  void deal(std::int64_t count, const Body& body) const {
    if (threads == 1) {
      for (std::int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    for (std::int64_t i = meeting->next(); i < count; i = meeting->next()) body(i);
    meet();
  }
  // Calls body(i) for this member's part of [0, count), one contiguous range.
  template <class Body>
  void part(std::int64_t count, const Body& body) const {
    for (std::int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) body(i);
  }
};

// Threads that stay ready for a leader, the thread that holds them: one parallel region for many calls, so that a short one does not
// pay for a region's begin and end.
class Team final : public HeldThreads {
 public:
  // Calls steps() on the calling thread, while up to `num_threads` - 1 others wait for what run_team() in it asks for. A parallel
  // region of any other kind in it has one thread. Throws what steps() does.
  static void hold(int num_threads, const std::function<void(HeldThreads&)>& steps);
  // The team that the calling thread leads; null: none.
  static Team* current();

  // Calls work(context, member) on `threads` members at most, the leader being the first.
  using Work = void (*)(const void* context, const Member&);
  void run(int threads, Work work, const void* context);
  void expect(std::span<const MemoryRange> soon,
              std::span<const std::vector<MemoryRange>> by_thread) override {
    soon_ = soon;
    by_thread_ = by_thread;
  }

 private:
  void serve(int thread);
  void post(int members, Work work, const void* context);

  Prefetch expected(int thread) const {
    return static_cast<std::size_t>(thread) < by_thread_.size() ? Prefetch(by_thread_[thread]) : Prefetch();
  }

  int threads_ = 1;
  std::span<const MemoryRange> soon_;
  std::span<const std::vector<MemoryRange>> by_thread_;
  Meeting meeting_;
  // The call under way; without work, the team goes home.
  Work work_ = nullptr;
  const void* context_ = nullptr;
  int members_ = 0;
  alignas(64) std::atomic<std::uint32_t> call_{0};     // how many there were
  alignas(64) std::atomic<std::uint32_t> pending_{0};  // threads that have not seen the end of the last one
};

// Calls body(member) on up to `num_threads` threads: of the team that the calling thread leads, or else of a region for this call.
template <class Body>
void run_team(int num_threads, const Body& body) {
  if (num_threads <= 1) return body(Member{0, 1, nullptr});
  if (Team* const team = Team::current())
    return team->run(
        num_threads, [](const void* context, const Member& m) { (*static_cast<const Body*>(context))(m); },
        &body);
  Meeting meeting;
#pragma omp parallel num_threads(num_threads)
  body(Member{omp_get_thread_num(), omp_get_num_threads(), &meeting});
}

}  // namespace kf::cpu
