#include "kf/telemetry.h"

#include "core/accumulate.h"

namespace kf {

void accumulate(Counters::Entry& sums, const CallRecord& r) {
  ++sums.calls;
  sums.launches += r.launches;
  if (r.fallback) {
    ++sums.fallbacks;
    sums.fallback_reason = r.reason;
  }
  sums.bytes += r.cost.bytes;
  sums.flops += r.cost.flops;
  if (r.seconds > 0) sums.seconds += r.seconds;
}

void Counters::on_call(const CallRecord& r) {
  std::lock_guard lock(mutex_);
  accumulate(entries_[{r.op, r.kernel}], r);
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
