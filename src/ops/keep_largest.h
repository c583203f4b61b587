// Dynamic n:m sparsity of scores, in plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace kf::ops {

// Of every m neighbours of a row keeps the n largest, of equal ones the earlier, NaN counting as infinity; the others become
// -inf. `position`: that of scores[0] within its m.
template <class T>
void keep_largest(T* scores, std::int64_t count, std::int64_t position, std::int64_t n, std::int64_t m) {
  constexpr std::int64_t kMost = 64;  // of a group that are judged at a time
  const auto rank_of = [](T x) { return std::isnan(x) ? std::numeric_limits<T>::infinity() : x; };
  for (std::int64_t begin = 0; begin < count;) {
    const std::int64_t end = std::min(count, begin + m - position);
    position = 0;
    // Scores are only lowered once all of a stretch are judged; those before it that are gone were beaten by n others, which
    // are still there.
    for (std::int64_t from = begin; from < end; from += kMost) {
      const std::int64_t to = std::min(end, from + kMost);
      bool kept[kMost];
      for (std::int64_t i = from; i < to; ++i) {
        std::int64_t larger = 0;
        for (std::int64_t j = begin; j < end; ++j) {
          const T other = rank_of(scores[j]), own = rank_of(scores[i]);
          larger += other > own || (other == own && j < i);
        }
        kept[i - from] = larger < n;
      }
      for (std::int64_t i = from; i < to; ++i)
        if (!kept[i - from]) scores[i] = -std::numeric_limits<T>::infinity();
    }
    begin = end;
  }
}

}  // namespace kf::ops
