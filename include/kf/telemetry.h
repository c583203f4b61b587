// Telemetry: which kernel ran, on what shapes, at what cost, and whether as a fallback.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "kf/op.h"

namespace kf {

struct CallRecord {
  Op op{};
  const char* kernel = "";  // the row's name
  const char* shapes = "";  // describe() of the planned params
  Cost cost;
  int launches = 1;
  bool fallback = false;         // served outside the configured families
  const char* reason = "";       // of a fallback: what the configured kernels said
  double seconds = -1.0;         // -1: not timed
  double start = 0.0;            // of a timed call: seconds of the steady clock
  const void* params = nullptr;  // the call's
};

// Receives every call; must be safe to call from several threads. The pointers live only during the call.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual bool wants_time() const { return false; }
  virtual void on_call(const CallRecord& record) = 0;
};

// A sink that adds up by op and kernel.
class Counters : public Sink {
 public:
  struct Entry {
    std::int64_t calls = 0, launches = 0, fallbacks = 0;
    double bytes = 0, flops = 0, seconds = 0;
    std::string fallback_reason;  // of the latest fallback
  };
  explicit Counters(bool timed = false) : timed_(timed) {}
  bool wants_time() const override { return timed_; }
  void on_call(const CallRecord& record) override;
  std::map<std::pair<std::string, std::string>, Entry> snapshot() const;  // (op, kernel) -> sums
  std::int64_t launches() const;
  void reset();

 private:
  bool timed_;
  mutable std::mutex mutex_;
  std::map<std::pair<Op, std::string>, Entry> entries_;
};

}  // namespace kf
