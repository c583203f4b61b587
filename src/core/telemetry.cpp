#include "kf/telemetry.h"

namespace kf {

void Counters::on_call(const CallRecord& r) {
  std::lock_guard lock(mutex_);
  Entry& e = entries_[{r.op, r.kernel}];
  ++e.calls;
  e.launches += r.launches;
  if (r.fallback) {
    ++e.fallbacks;
    e.fallback_reason = r.reason;
  }
  e.bytes += r.cost.bytes;
  e.flops += r.cost.flops;
  if (r.seconds > 0) e.seconds += r.seconds;
}

std::map<std::pair<std::string, std::string>, Counters::Entry> Counters::snapshot() const {
  std::lock_guard lock(mutex_);
  std::map<std::pair<std::string, std::string>, Entry> out;
  for (const auto& [key, entry] : entries_) out[{op_name(key.first), key.second}] = entry;
  return out;
}

std::int64_t Counters::launches() const {
  std::lock_guard lock(mutex_);
  std::int64_t n = 0;
  for (const auto& [key, entry] : entries_) n += entry.launches;
  return n;
}

void Counters::reset() {
  std::lock_guard lock(mutex_);
  entries_.clear();
}

}  // namespace kf
