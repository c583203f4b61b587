// A linear layer that is to be refused, whatever is wrong with it.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kf/kf.h"

namespace kf {

// What a call's output holds before.
inline constexpr float kUntouched = 9.0f;

// An invalid_argument that names the operand and what was expected of it; the output as it was.
inline void expect_refused(const LinearParams& p, const std::string& operand, const std::string& expected) {
  try {
    default_dispatcher().run(p);
    FAIL() << operand << " was accepted";
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << what;
    EXPECT_NE(what.find("linear: " + operand + ": expected " + expected), std::string::npos) << what;
  }
  for (std::int64_t i = 0; i < p.out.numel(); ++i) ASSERT_EQ(p.out.as<float>()[i], kUntouched);
}

}  // namespace kf
