// What is asked for ahead of attention with few query rows.
#pragma once

#include <algorithm>

namespace kf::cpu {

// Rows of a span of keys (stream-inl.h), `count` of `row_bytes` each, that are asked for ahead. Intel's cores keep such a
// request where misses of the first-level cache wait, until it is served, and there are few places: of f32, with which little is
// done, only where a span begins is then asked for, and the rest is left to the hardware, which follows it by itself (a fifth
// less time on a Xeon of the fourth generation). Others are asked for whole.
inline int fetched_rows(int count, int row_bytes, bool of_f32) {
#if defined(__x86_64__)
  static const bool few_places = __builtin_cpu_is("intel") > 0;
  constexpr int kFirstBytes = 512;
  if (few_places && of_f32) return std::min(count, std::max(kFirstBytes / row_bytes, 1));
#endif
  return count;
}

}  // namespace kf::cpu
