#include "machine/lockstep.h"

#include <setjmp.h>
#include <ucontext.h>

#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace kf::lockstep {
namespace {

constexpr std::size_t kStack = 64 << 10;

enum class State : std::uint8_t { ready, at_warp, at_block, ended };

// One host thread's fibers. They are made once and go from body to body: begun by ucontext, switched by _setjmp and _longjmp, which
// leave the signal mask alone.
class Fibers {
 public:
  // Of the host thread that asks.
  static Fibers& own() {
    static thread_local Fibers fibers;
    return fibers;
  }
  // The same, within a body.
  static thread_local Fibers* running;

  void run_block(const Launch& launch, long long block) {
    running = this;
    launch_ = &launch;
    threads_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
    gridDim = launch.grid;
    blockDim = launch.block;
    blockIdx = place(block, launch.grid);
    const int warps = (threads_ + launch.warp - 1) / launch.warp;
    while (fibers_.size() < static_cast<std::size_t>(threads_)) make();
    exchanges_.assign(static_cast<std::size_t>(warps), {});
    std::memset(shared_, 0xff, sizeof shared_);  // NaN where it is read before it is written
    for (int i = 0; i < threads_; ++i) {
      Fiber& f = *fibers_[static_cast<std::size_t>(i)];
      f.state = State::ready;
      f.turn = 0;
      f.index = place(i, launch.block);
    }
    for (int waiting = threads_; waiting > 0;) {
      waiting = 0;
      for (int w = 0; w < warps; ++w) waiting += run_warp(w);
      if (waiting != 0 && waiting != threads_)
        fail(std::to_string(waiting) + " of " + std::to_string(threads_) +
             " threads wait for their block, the others have ended");
      for (int i = 0; i < threads_; ++i) release(i, State::at_block);
    }
  }

  void wait(State state) {
    Fiber& f = *fibers_[static_cast<std::size_t>(current_)];
    f.state = state;
    if (_setjmp(f.at) == 0) _longjmp(scheduler_, 1);
  }
  int current() const { return current_; }
  int& turn() { return fibers_[static_cast<std::size_t>(current_)]->turn; }
  Exchange& exchange() { return exchanges_[static_cast<std::size_t>(current_ / launch_->warp)]; }
  unsigned char* shared() { return shared_; }

 private:
  struct Fiber {
    jmp_buf at;
    ucontext_t begin;
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
    State state = State::ended;
    bool begun = false;
    int turn = 0;
    Extent index;
  };

  static Extent place(long long number, const Extent& of) {
    const auto n = static_cast<unsigned long long>(number);
    return {static_cast<unsigned>(n % of.x), static_cast<unsigned>(n / of.x % of.y),
            static_cast<unsigned>(n / of.x / of.y)};
  }

  void make() {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber& f = *fibers_.back();
    getcontext(&f.begin);
    f.begin.uc_stack.ss_sp = f.stack.get();
    f.begin.uc_stack.ss_size = kStack;
    makecontext(
        &f.begin, [] { running->work(); }, 0);
  }
  // Body after body.
  void work() {
    for (;;) {
      launch_->body();
      wait(State::ended);
    }
  }

  [[noreturn]] void fail(const std::string& what) {
    fibers_.clear();  // they are within a body
    throw std::logic_error("lockstep: " + what);
  }

  // Until all its lanes wait for the block or have ended; how many wait.
  int run_warp(int warp) {
    const int begin = warp * launch_->warp, end = std::min(begin + launch_->warp, threads_);
    for (;;) {
      int at_warp = 0, at_block = 0;
      for (int i = begin; i < end; ++i) {
        if (fibers_[static_cast<std::size_t>(i)]->state == State::ready) resume(i);
        const State s = fibers_[static_cast<std::size_t>(i)]->state;
        at_warp += s == State::at_warp;
        at_block += s == State::at_block;
      }
      if (at_warp == 0) return at_block;
      if (at_warp != end - begin)
        fail(std::to_string(at_warp) + " of " + std::to_string(end - begin) +
             " lanes of a warp wait for it, " + std::to_string(at_block) +
             " for the block, the others have ended");
      for (int i = begin; i < end; ++i) release(i, State::at_warp);
    }
  }
  void release(int i, State from) {
    if (fibers_[static_cast<std::size_t>(i)]->state == from)
      fibers_[static_cast<std::size_t>(i)]->state = State::ready;
  }
  void resume(int i) {
    current_ = i;
    Fiber& f = *fibers_[static_cast<std::size_t>(i)];
    threadIdx = f.index;
    if (_setjmp(scheduler_) != 0) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.begin);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Exchange> exchanges_;
  const Launch* launch_ = nullptr;
  int threads_ = 0, current_ = 0;
  jmp_buf scheduler_;
  alignas(16) unsigned char shared_[kMaxShared];
};

thread_local Fibers* Fibers::running = nullptr;

}  // namespace

bool run(const Launch& launch) {
  const auto count = [](const Extent& e) { return static_cast<long long>(e.x) * e.y * e.z; };
  const long long threads = count(launch.block), blocks = count(launch.grid);
  if (threads < 1 || threads > kMaxThreads || launch.shared_bytes > kMaxShared || blocks < 1) return false;
  if (recorded) recorded->push_back({launch.grid, launch.block, launch.shared_bytes});
  std::exception_ptr fault;
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic)
  for (long long block = 0; block < blocks; ++block) {
    try {
      Fibers::own().run_block(launch, block);
    } catch (...) {
      const std::lock_guard lock(mutex);
      fault = std::current_exception();
    }
  }
  if (fault) std::rethrow_exception(fault);
  return true;
}

void wait_for_warp() { Fibers::running->wait(State::at_warp); }
void wait_for_block() { Fibers::running->wait(State::at_block); }
int thread() { return Fibers::running->current(); }
int& turn() { return Fibers::running->turn(); }
Exchange& of_warp() { return Fibers::running->exchange(); }
unsigned char* dynamic_shared() { return Fibers::running->shared(); }

}  // namespace kf::lockstep
