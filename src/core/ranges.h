// A kernel's run as a range that a profiler shows.
#pragma once

#include "kf/backend.h"

namespace kf {

class RangeScope {
 public:
  RangeScope(const Ranges& ranges, const char* name) : pop_(ranges.pop) {
    if (ranges.push) ranges.push(name);
  }
  ~RangeScope() {
    if (pop_) pop_();
  }
  RangeScope(const RangeScope&) = delete;
  RangeScope& operator=(const RangeScope&) = delete;

 private:
  void (*pop_)();
};

}  // namespace kf
