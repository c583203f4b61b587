// A sink for people: counts by kernel, the distinct calls with what it takes to repeat them, and spans for a timeline.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
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
  // One layout of one op, as one kernel served it.
  struct Distinct {
    AnyParams params;  // without memory
    std::string shapes, kernel;
    int launches = 1;  // of one call
    Counters::Entry sums;
  };
  // One timed call. Seconds of the steady clock.
  struct Span {
    Op op{};
    std::string kernel, shapes;
    double start = 0, seconds = 0;
    std::uint64_t thread = 0;
    std::uint64_t number = 0;  // from 1, in the order of recording, and on after reset()
  };

  // `timed`: every call waits for its device and is timed.
  explicit CallLog(bool timed = false) : timed_(timed), others_(timed) {}

  bool wants_time() const override { return timed_; }
  void on_call(const CallRecord& record) override;

  // By op and kernel.
  std::map<std::pair<std::string, std::string>, Counters::Entry> counts() const;
  // At most kMaxDistinct; later ones are only counted.
  std::vector<Distinct> distinct() const;
  // Those with a number above `after` among the latest kMaxSpans; `own`: of the calling thread alone.
  std::vector<Span> spans(std::uint64_t after = 0, bool own = false) const;
  void reset();

  static constexpr std::size_t kMaxDistinct = 1024, kMaxSpans = 1 << 16;

 private:
  // The entry of a call; null where it is not remembered.
  Distinct* find(const CallRecord& record);

  bool timed_;
  mutable std::mutex mutex_;
  std::list<Distinct> distinct_;
  std::unordered_map<std::string, Distinct*> by_layout_;  // kernel and shapes
  // By the address of a record's shapes, which is its plan's: hashes no text. Another plan may come to lie there, so
  // what is found is compared.
  std::unordered_map<const char*, Distinct*> by_address_;
  Counters others_;  // calls that are not remembered
  std::deque<Span> spans_;
  std::uint64_t last_number_ = 0;
};

}  // namespace kf
