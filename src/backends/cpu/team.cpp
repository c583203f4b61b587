#include "backends/cpu/team.h"

#include <exception>

#include "hwy/cache_control.h"

namespace kf::cpu {
namespace {

// Waits for a value that suits: looks again and again for some 50 us, longer than what lies between two calls of a step and far
// shorter than a turn of the operating system's, then sleeps.
template <class T, class Suits>
void wait_for(const std::atomic<T>& value, const Suits& suits, Prefetch next = {}) {
  constexpr int kLooks = 1000;
  for (int i = 0; i < kLooks; ++i) {
    if (suits(value.load(std::memory_order_acquire))) return;
    if (!next.next()) hwy::Pause();
  }
  for (T now = value.load(std::memory_order_acquire); !suits(now);
       now = value.load(std::memory_order_acquire))
    value.wait(now, std::memory_order_acquire);
}

thread_local Team* led = nullptr;

}  // namespace

bool Prefetch::next() {
  constexpr std::size_t kLine = 64, kPiece = 8 * kLine;
  while (!ranges_.empty() && offset_ >= ranges_[0].bytes) {
    ranges_ = ranges_.subspan(1);
    offset_ = 0;
  }
  if (ranges_.empty() || asked_ >= kMostBytes) return false;
  const std::size_t end = std::min(ranges_[0].bytes, offset_ + kPiece);
  for (; offset_ < end; offset_ += kLine)
    __builtin_prefetch(static_cast<const char*>(ranges_[0].data) + offset_, 0, 3);
  asked_ += kPiece;
  return true;
}

void Meeting::wait(int threads, std::span<const MemoryRange> next) {
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads)
    return wait_for(
        round_, [round](std::uint32_t now) { return now != round; }, Prefetch(next));
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  round_.store(round + 1, std::memory_order_release);
  round_.notify_all();
}

Team* Team::current() { return led; }

void Team::hold(int num_threads, const std::function<void(HeldThreads&)>& steps) {
  Team team;
  if (num_threads <= 1 || led != nullptr || omp_in_parallel()) return steps(team);
  std::exception_ptr error;
#pragma omp parallel num_threads(num_threads)
  {
    const int thread = omp_get_thread_num();
    if (thread > 0) {
      team.serve(thread);
    } else {
      team.threads_ = omp_get_num_threads();
      led = &team;
      try {
        steps(team);
      } catch (...) {
        error = std::current_exception();
      }
      led = nullptr;
      team.post(0, nullptr, nullptr);
    }
  }
  if (error) std::rethrow_exception(error);
}

void Team::post(int members, Work work, const void* context) {
  work_ = work;
  context_ = context;
  members_ = members;
  pending_.store(static_cast<std::uint32_t>(threads_ - 1), std::memory_order_relaxed);
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
}

void Team::run(int threads, Work work, const void* context) {
  threads = std::min(threads, threads_);
  if (threads == 1) return work(context, Member{0, 1, nullptr});
  post(threads, work, context);
  work(context, Member{0, threads, &meeting_});
  Prefetch soon(soon_);
  while (soon.next()) {
  }
  wait_for(
      pending_, [](std::uint32_t now) { return now == 0; }, expected(0));
}

void Team::serve(int thread) {
  Prefetch next;
  for (std::uint32_t call = 0;; ++call) {
    wait_for(
        call_, [call](std::uint32_t now) { return now != call; }, next);
    if (work_ == nullptr) return;
    if (thread < members_) work_(context_, Member{thread, members_, &meeting_});
    next = expected(thread);  // the leader may soon expect something else
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_all();
  }
}

}  // namespace kf::cpu
