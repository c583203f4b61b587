// The portable kernels in warps of 64 lanes, over the cases, against the CPU's reference: what a DCU would compute, but for the
// rounding of its own instructions.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "backend.h"
#include "backends/hip/kernels.h"
#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

constexpr std::size_t kGemv = 512 << 10;

// Of all operands.
std::size_t bytes_of(const cases::Case& c) {
  std::size_t bytes = 0;
  for (const Tensor& t : cases::instantiate(c).storage) bytes += t.view().nbytes();
  return bytes;
}

const Backend& backend() {
  static const Backend& b = register_backend(lockstep_backend("gfx906"));
  return b;
}

// Of an op's cases every so many (KF_LOCKSTEP_EVERY) that is small, and what serves rows that these left out; 1: all, of any size.
// KF_LOCKSTEP_OPS: of the ops whose names begin so alone.
TEST(Lockstep, CasesAgreeWithTheCpusReference) {
  const char* const every = std::getenv("KF_LOCKSTEP_EVERY");
  const char* const ops = std::getenv("KF_LOCKSTEP_OPS");
  const auto is_asked = [&](Op op) { return std::string_view(op_name(op)).starts_with(ops ? ops : ""); };
  const int step = every ? std::max(1, std::atoi(every)) : 24;
  Dispatcher d(backend());
  std::set<std::string> served;
  std::map<std::string, std::string> reasons;
  const auto check = [&](const cases::Case& c) {
    for (const cases::KernelCheck& k : cases::check_case(c, d)) {
      if (!k.supported) reasons[k.kernel] = k.reason;
      if (!k.supported) continue;
      served.insert(k.kernel);
      EXPECT_TRUE(k.result.ok) << c.name << " on " << k.kernel << ": " << k.result.detail;
    }
  };
  const auto all_served = [&](Op op) {
    return std::ranges::all_of(d.kernels(op), [&](const Kernel* k) { return served.contains(k->name); });
  };
  std::vector<const cases::Case*> others;
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || d.kernels(c.op).empty() || !is_asked(c.op)) continue;
    if (seen[c.op]++ % step == 0) {
      if (step == 1 || bytes_of(c) <= kGemv) check(c);
    } else {
      others.push_back(&c);
    }
  }
  for (const cases::Case* c : others)
    if (!all_served(c->op) && (step == 1 || bytes_of(*c) <= kGemv)) check(*c);
  for (const Kernel& k : hip::kernels()) {
    if (!is_asked(k.op)) continue;
    EXPECT_TRUE(served.contains(k.name)) << k.name << " served no case: " << reasons[k.name];
  }
}

// The machine itself.
namespace machine {

void reverse_kernel(int* values) {
  values[threadIdx.x] = cuda::shuffle(values[threadIdx.x], 63 - threadIdx.x);
}
void half_kernel(int* values) {
  if (threadIdx.x < 32) values[threadIdx.x] = cuda::shuffle_xor(values[threadIdx.x], 1);
}
void early_kernel(int*) {
  if (threadIdx.x < 64) __syncthreads();
}

}  // namespace machine

TEST(Lockstep, LanesExchangeValues) {
  std::vector<int> values(64);
  std::iota(values.begin(), values.end(), 0);
  ASSERT_EQ(cuda::launch_kernel(machine::reverse_kernel, dim3(1), dim3(64), 0, nullptr, values.data()),
            cudaSuccess);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(values[static_cast<std::size_t>(i)], 63 - i);
}

// A kernel that counts on warps of 32 lanes is caught.
TEST(Lockstep, ThreadsThatWaitForOthersInVainAreAFault) {
  std::vector<int> values(128);
  EXPECT_THROW(cuda::launch_kernel(machine::half_kernel, dim3(1), dim3(64), 0, nullptr, values.data()),
               std::logic_error);
  EXPECT_THROW(cuda::launch_kernel(machine::early_kernel, dim3(1), dim3(128), 0, nullptr, values.data()),
               std::logic_error);
  EXPECT_EQ(cuda::launch_kernel(machine::half_kernel, dim3(1), dim3(32), 0, nullptr, values.data()),
            cudaSuccess);
  EXPECT_NE(cuda::launch_kernel(machine::half_kernel, dim3(1), dim3(2048), 0, nullptr, values.data()),
            cudaSuccess);
}

}  // namespace
}  // namespace kf
