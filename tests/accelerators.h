// Tests on the devices of this machine: where there is none they are skipped, with every backend's reason, or fail with it
// where KF_REQUIRE_ALL is set.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kf/backend.h"

namespace kf {

class AcceleratorsHere : public testing::Test {
 protected:
  void SetUp() override {
    std::string reasons = "no accelerator here";
    for (const Backend* b : all_backends()) {
      if (b->device_type == DeviceType::cpu) continue;
      const Support s = b->available();
      if (s) {
        usable_.push_back(b);
      } else {
        reasons += "; " + b->name + ": " + s.reason();
      }
    }
    if (!usable_.empty()) return;
    const char* const required = std::getenv("KF_REQUIRE_ALL");
    if (required != nullptr && *required != '\0' && std::string_view(required) != "0") FAIL() << reasons;
    GTEST_SKIP() << reasons;
  }

  std::vector<const Backend*> usable_;
};

}  // namespace kf
