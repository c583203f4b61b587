// What tests of linear layers ask of a call, whatever its weight.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

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

// The same bits whatever the number of threads.
inline void expect_same_bits_whatever_the_threads(const LinearParams& p) {
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    Dispatcher d(backend_by_name("cpu"), {.num_threads = threads});
    d.run(p);
    const std::vector<float> got(p.out.as<float>(), p.out.as<float>() + p.out.numel());
    if (first.empty()) first = got;
    EXPECT_EQ(std::memcmp(got.data(), first.data(), got.size() * sizeof(float)), 0)
        << p.x.dim(0) << " tokens, " << threads << " threads";
  }
}

}  // namespace kf
