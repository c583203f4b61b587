// A sink for people: counts by kernel, the distinct calls with what it takes to repeat them, and spans for a timeline.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kf/telemetry.h"

namespace kf {

class CallLog : public Sink {
 public:
  // One layout of one op, as it was called.
  struct Distinct {
    AnyParams params;  // without memory
    std::string shapes, kernel;
    std::int64_t calls = 0;
    int launches = 1;
    bool fallback = false;
  };
  // One timed call. Seconds of the steady clock.
  struct Span {
    Op op{};
    std::string kernel, shapes;
    double start = 0, seconds = 0;
    std::uint64_t thread = 0;
  };

  // `timed`: every call waits for its device and is timed.
  explicit CallLog(bool timed = false) : timed_(timed), counters_(timed) {}

  bool wants_time() const override { return timed_; }
  void on_call(const CallRecord& record) override;

  std::map<std::pair<std::string, std::string>, Counters::Entry> counts() const {
    return counters_.snapshot();
  }
  // At most kMaxDistinct; later ones are counted but not remembered.
  std::vector<Distinct> distinct() const;
  // The latest kMaxSpans.
  std::vector<Span> spans() const;
  void reset();

  static constexpr std::size_t kMaxDistinct = 1024, kMaxSpans = 1 << 16;

 private:
  bool timed_;
  Counters counters_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Distinct> distinct_;  // by kernel and shapes
  std::string key_;                                     // of the call at hand; kept, to make no string a call
  std::deque<Span> spans_;
};

}  // namespace kf
