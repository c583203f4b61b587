#include "kf/call_log.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <thread>

#include "core/accumulate.h"

namespace kf {
namespace {

// The layout of a call whose memory may be gone when it is looked at.
AnyParams without_memory(Op op, const void* params) {
  AnyParams copy(op);
  std::memcpy(copy.data(), params, op_info(op).params_bytes);
  for (const Slot& s : slots_of(op, copy.data())) s.tensor->data = nullptr;
  return copy;
}

std::uint64_t this_thread() { return std::hash<std::thread::id>{}(std::this_thread::get_id()); }

}  // namespace

CallLog::Distinct* CallLog::find(const CallRecord& r) {
  if (const auto it = by_address_.find(r.shapes);
      it != by_address_.end() && it->second->shapes == r.shapes && it->second->kernel == r.kernel)
    return it->second;
  const std::string layout = std::string(r.kernel) + ' ' + r.shapes;
  auto it = by_layout_.find(layout);
  if (it == by_layout_.end()) {
    if (distinct_.size() >= kMaxDistinct || r.params == nullptr) return nullptr;
    distinct_.push_back({without_memory(r.op, r.params), r.shapes, r.kernel, r.launches, {}});
    it = by_layout_.emplace(layout, &distinct_.back()).first;
  }
  if (by_address_.size() >= 4 * kMaxDistinct) by_address_.clear();
  by_address_[r.shapes] = it->second;
  return it->second;
}

void CallLog::on_call(const CallRecord& r) {
  std::lock_guard lock(mutex_);
  if (Distinct* known = find(r))
    accumulate(known->sums, r);
  else
    others_.on_call(r);
  if (r.seconds < 0) return;
  spans_.push_back({r.op, r.kernel, r.shapes, r.start, r.seconds, this_thread(), ++last_number_});
  if (spans_.size() > kMaxSpans) spans_.pop_front();
}

std::map<std::pair<std::string, std::string>, Counters::Entry> CallLog::counts() const {
  auto all = others_.snapshot();
  std::lock_guard lock(mutex_);
  for (const Distinct& d : distinct_) {
    Counters::Entry& sums = all[{op_name(d.params.op()), d.kernel}];
    sums.calls += d.sums.calls;
    sums.launches += d.sums.launches;
    sums.fallbacks += d.sums.fallbacks;
    sums.bytes += d.sums.bytes;
    sums.flops += d.sums.flops;
    sums.seconds += d.sums.seconds;
    if (d.sums.fallbacks > 0) sums.fallback_reason = d.sums.fallback_reason;
  }
  return all;
}

std::vector<CallLog::Distinct> CallLog::distinct() const {
  std::lock_guard lock(mutex_);
  return {distinct_.begin(), distinct_.end()};
}

std::vector<CallLog::Span> CallLog::spans(std::uint64_t after, bool own) const {
  std::lock_guard lock(mutex_);
  // Their numbers are without gaps.
  const std::uint64_t first = last_number_ - spans_.size();
  const auto skipped =
      static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(after > first ? after - first : 0, spans_.size()));
  std::vector<Span> found;
  std::copy_if(spans_.begin() + skipped, spans_.end(), std::back_inserter(found),
               [own, thread = this_thread()](const Span& s) { return !own || s.thread == thread; });
  return found;
}

void CallLog::reset() {
  others_.reset();
  std::lock_guard lock(mutex_);
  by_address_.clear();
  by_layout_.clear();
  distinct_.clear();
  spans_.clear();
}

}  // namespace kf
