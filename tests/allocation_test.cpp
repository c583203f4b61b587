// Running a plan allocates nothing: every fused kernel over the small cases, with the C library's allocator counted.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <string>

#include "case.h"
#include "kf/dispatch.h"
#include "runner.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void note() {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

// In front of the C library's, in this program and the libraries that it loads.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t n) {
  note();
  return __libc_malloc(n);
}
void* calloc(std::size_t n, std::size_t size) {
  note();
  return __libc_calloc(n, size);
}
void* realloc(void* p, std::size_t n) {
  note();
  return __libc_realloc(p, n);
}
void* aligned_alloc(std::size_t alignment, std::size_t n) {
  note();
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t n) {
  note();
  *p = __libc_memalign(alignment, n);
  return *p ? 0 : ENOMEM;
}
}

namespace kf {
namespace {

TEST(Allocation, IsCounted) {
  const long before = allocations;
  counting = true;
  ::operator delete(::operator new(16));
  counting = false;
  EXPECT_EQ(allocations, before + 1);
}

TEST(Allocation, FusedKernelsRunWithout) {
  Dispatcher d(backend_by_name("cpu"));
  std::map<std::string, std::string> offenders;  // kernel -> the first case
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    // One in five of each op: all forms come by, and the values do not matter.
    if (c.bench || seen[c.op]++ % 5 != 0) continue;
    cases::Instance instance = cases::instantiate(c);
    for (const Kernel* k : d.kernels(c.op)) {
      // oneDNN's own execution allocates.
      if ((k->families & kFused) == 0 || k->name.ends_with("_onednn")) continue;
      for (const bool packed : {false, true}) {
        PackCache packs;
        const PlanContext ctx{d.caps(), d, d.num_threads(), packed ? &packs : nullptr};
        if (!k->supports(instance.params.data(), ctx)) continue;
        const auto plan = d.plan(c.op, instance.params.data(), {.families = 0, .kernel = k->name},
                                 packed ? &packs : nullptr);
        const auto workspace = d.allocate(plan->workspace_bytes());
        const RunContext run{workspace.get(), d.num_threads(), nullptr};
        plan->run(instance.params.data(), run);  // what threads set up for themselves, once
        const long before = allocations;
        counting = true;
        plan->run(instance.params.data(), run);
        counting = false;
        if (allocations != before)
          offenders.emplace(k->name + (packed ? " (packed)" : ""),
                            c.name + ": " + std::to_string(allocations - before) + " allocations");
      }
    }
  }
  for (const auto& [kernel, where] : offenders) ADD_FAILURE() << kernel << " allocates in run(): " << where;
}

}  // namespace
}  // namespace kf

#endif
