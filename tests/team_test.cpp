// Teams of threads, and kernels on the threads of one that is held.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "backends/cpu/team.h"
#include "case.h"
#include "kf/dispatch.h"
#include "runner.h"

namespace kf::cpu {
namespace {

// Calls check() alone, and by the leader of a team of so many.
template <class Check>
void with_and_without_a_team(int num_threads, const Check& check) {
  check();
  Team::hold(num_threads, [&](HeldThreads&) {
    EXPECT_NE(Team::current(), nullptr);
    for (int i = 0; i < 200; ++i) check();
  });
  EXPECT_EQ(Team::current(), nullptr);
}

TEST(Team, EveryItemIsDealtOnce) {
  with_and_without_a_team(4, [] {
    for (const int threads : {1, 2, 3, 4, 9}) {
      std::vector<std::atomic<int>> dealt(37), parts(37);
      run_team(threads, [&](const Member& m) {
        m.deal(37, [&](std::int64_t i) { ++dealt[static_cast<std::size_t>(i)]; });
        for (const auto& n : dealt) EXPECT_EQ(n, 1);  // deal() ends when all is done
        m.part(37, [&](std::int64_t i) { ++parts[static_cast<std::size_t>(i)]; });
        m.meet();
        for (const auto& n : parts) EXPECT_EQ(n, 1);
        m.deal(37, [&](std::int64_t i) { ++dealt[static_cast<std::size_t>(i)]; });  // anew
        for (const auto& n : dealt) EXPECT_EQ(n, 2);
      });
    }
  });
}

TEST(Team, MembersAreNoMoreThanTheTeamHas) {
  Team::hold(2, [](HeldThreads&) {
    for (const int threads : {1, 2, 5}) {
      std::atomic<int> members{0};
      run_team(threads, [&](const Member& m) {
        EXPECT_LT(m.thread, m.threads);
        EXPECT_LE(m.threads, std::min(threads, 2));
        ++members;
      });
      EXPECT_LE(members, std::min(threads, 2));
      EXPECT_GE(members, 1);
    }
  });
}

TEST(Team, AHoldWithinAHoldKeepsTheTeam) {
  Team::hold(3, [](HeldThreads&) {
    Team* const team = Team::current();
    Team::hold(3, [&](HeldThreads&) { EXPECT_EQ(Team::current(), team); });
    EXPECT_EQ(Team::current(), team);
  });
}

TEST(Team, WhatTheStepsThrowComesOut) {
  for (const int threads : {1, 3})
    EXPECT_THROW(Team::hold(threads, [](HeldThreads&) { throw std::runtime_error("steps"); }),
                 std::runtime_error);
  EXPECT_EQ(Team::current(), nullptr);
}

TEST(Team, AsksForRangesOfAnySize) {
  const std::vector<char> memory(1000000);
  const std::vector<MemoryRange> soon = {
      {nullptr, 0}, {memory.data() + 3, 1}, {memory.data(), memory.size()}};
  const std::vector<std::vector<MemoryRange>> by_thread = {{}, {{memory.data() + 5, 70}, {}}};
  Team::hold(3, [&](HeldThreads& threads) {
    std::atomic<int> calls{0};
    threads.expect(soon, by_thread);
    for (int i = 0; i < 100; ++i) run_team(3, [&](const Member&) { ++calls; });
    threads.expect({}, {});
    run_team(3, [&](const Member& m) { m.meet({&soon[1], 2}); });
    EXPECT_GE(calls, 100);
  });
}

// A prefetch of any address is allowed, so that a wrong range would go unnoticed.
TEST(Team, KernelsNameWeightsOfTheirs) {
  Dispatcher d(backend_by_name("cpu"));
  int named = 0;
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    const std::vector<const Kernel*> kernels = d.kernels(c.op);
    if (c.bench ||
        std::ranges::none_of(kernels, [](const Kernel* k) { return static_cast<bool>(k->reads_first); }) ||
        seen[c.op]++ % 9 != 0)
      continue;
    cases::Instance instance = cases::instantiate(c);
    for (const Kernel* k : kernels) {
      if (!k->reads_first || !k->supports(instance.params.data(), {d.caps(), d, d.num_threads(), nullptr}))
        continue;
      for (int thread = 0; thread < 3; ++thread)
        for (const MemoryRange& range : k->reads_first(instance.params.data(), thread, 3)) {
          if (range.bytes == 0) continue;
          ++named;
          const auto* const begin = static_cast<const char*>(range.data);
          bool within = false;
          for (const Slot& s : slots_of(c.op, instance.params.data()))
            within |= s.is_weight && begin >= s.tensor->as<char>() &&
                      begin + range.bytes <= s.tensor->as<char>() + s.tensor->nbytes();
          EXPECT_TRUE(within) << c.name << " " << k->name << " thread " << thread;
        }
    }
  }
  EXPECT_EQ(seen.size(), 4u);  // the linear family
  EXPECT_GT(named, 0);
}

TEST(Team, HeldThreadsGiveTheSameBits) {
  Dispatcher d(backend_by_name("cpu"), {.num_threads = 3});
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || seen[c.op]++ % 29 != 0) continue;
    for (const Kernel* k : d.kernels(c.op)) {
      if (!k->on_held_threads) continue;
      cases::Instance alone = cases::instantiate(c), held = cases::instantiate(c);
      const Selection selection{.families = ~0u, .allow_fallback = false, .kernel = k->name};
      if (!k->supports(alone.params.data(), {d.caps(), d, d.num_threads(), nullptr})) continue;
      d.run(c.op, alone.params.data(), selection);
      d.backend().hold_threads(d.num_threads(),
                               [&](HeldThreads&) { d.run(c.op, held.params.data(), selection); });
      for (std::size_t i = 0; i < alone.storage.size(); ++i) {
        const TensorView &a = alone.storage[i].view(), &b = held.storage[i].view();
        EXPECT_EQ(std::memcmp(a.data, b.data, a.nbytes()), 0) << c.name << " " << k->name << " operand " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kf::cpu
