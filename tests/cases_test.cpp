// Every case that is not of benchmark size, on every kernel of the CPU that accepts it, against the reference. Those of other
// backends: backends_test.cpp.

#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "case.h"
#include "kf/dispatch.h"
#include "runner.h"

namespace kf::cases {

// A failure names the case; gtest would print its bytes.
void PrintTo(const Case& c, std::ostream* to) { *to << c.name; }

namespace {

class CasesTest : public testing::TestWithParam<Case> {};

TEST_P(CasesTest, EveryKernelAgreesWithTheReference) {
  Dispatcher dispatcher(backend_by_name("cpu"));
  int served = 0;
  for (const KernelCheck& k : check_case(GetParam(), dispatcher)) {
    if (!k.supported) {
      EXPECT_FALSE(k.reason.empty()) << k.kernel << " refuses without a reason";
      continue;
    }
    ++served;
    EXPECT_TRUE(k.result.ok) << k.kernel << ": " << k.result.detail;
  }
  EXPECT_GT(served, 0) << "no kernel beside the reference serves this case";
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
