// Every case that is not of benchmark size, on every kernel that accepts it, against the CPU's reference: the kernels of
// the CPU, or of the backend that KF_TEST_BACKEND names.

#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <string>

#include "case.h"
#include "kf/dispatch.h"
#include "runner.h"

namespace kf::cases {

// A failure names the case; gtest would print its bytes.
void PrintTo(const Case& c, std::ostream* to) { *to << c.name; }

namespace {

const std::string& tested_backend() {
  static const std::string name = [] {
    const char* given = std::getenv("KF_TEST_BACKEND");
    return std::string(given ? given : "cpu");
  }();
  return name;
}

class CasesTest : public testing::TestWithParam<Case> {};

TEST_P(CasesTest, EveryKernelAgreesWithTheReference) {
  Dispatcher dispatcher(backend_by_name(tested_backend()));
  int served = 0;
  for (const KernelCheck& k : check_case(GetParam(), dispatcher)) {
    if (!k.supported) {
      EXPECT_FALSE(k.reason.empty()) << k.kernel << " refuses without a reason";
      continue;
    }
    ++served;
    EXPECT_TRUE(k.result.ok) << k.kernel << ": " << k.result.detail;
  }
  if (tested_backend() == "cpu") EXPECT_GT(served, 0) << "no kernel beside the reference serves this case";
}

std::vector<Case> small_cases() {
  std::vector<Case> out;
  for (const Case& c : all_cases())
    if (!c.bench) out.push_back(c);
  return out;
}

INSTANTIATE_TEST_SUITE_P(, CasesTest, testing::ValuesIn(small_cases()), [](const auto& info) {
  std::string s = info.param.name;
  for (char& c : s)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return s + "_" + std::to_string(info.index);
});

}  // namespace
}  // namespace kf::cases
