// Threads of blocks that take turns on the host: each runs until it waits for its warp or its block, and goes on once all of them have
// come. That all lanes of a warp take part where one moves a value, and all threads of a block in a barrier, is checked.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace kf::lockstep {

inline constexpr int kMaxThreads = 1024, kMaxShared = 64 << 10;  // of a block, as of a DCU

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};
// Those of the thread that runs.
inline thread_local Extent threadIdx, blockIdx, blockDim, gridDim;

struct Launch {
  Extent grid, block;
  int warp;  // lanes
  std::size_t shared_bytes;
  std::function<void()> body;  // of each thread
};
// What launches of this thread had, where one collects them.
struct Recorded {
  Extent grid, block;
  std::size_t shared_bytes;
};
inline thread_local std::vector<Recorded>* recorded = nullptr;

// False where a block is too large. Throws std::logic_error where threads wait for others that have ended or wait elsewhere.
bool run(const Launch& launch);

// ---- Within a body

void wait_for_warp();
void wait_for_block();
int thread();
unsigned char* dynamic_shared();

// What the lanes of this thread's warp exchange: two sets in turn, so that one is read while the next is written.
struct Exchange {
  std::uint64_t values[2][64];
};
Exchange& of_warp();
int& turn();  // of this thread

template <int kWarp>
int lane() {
  return thread() % kWarp;
}
template <int kWarp, class T>
T exchange(T v, int from) {
  static_assert(sizeof(T) <= 8);
  const int set = turn();
  turn() ^= 1;
  std::memcpy(&of_warp().values[set][lane<kWarp>()], &v, sizeof v);
  wait_for_warp();
  T other;
  std::memcpy(&other, &of_warp().values[set][from], sizeof other);
  return other;
}
template <int kWarp>
std::uint64_t ballot(bool v) {
  const int set = turn();
  turn() ^= 1;
  of_warp().values[set][lane<kWarp>()] = v;
  wait_for_warp();
  std::uint64_t lanes = 0;
  for (int i = 0; i < kWarp; ++i) lanes |= std::uint64_t{of_warp().values[set][i] & 1} << i;
  return lanes;
}

}  // namespace kf::lockstep
