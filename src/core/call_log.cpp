#include "kf/call_log.h"

#include <cstring>
#include <functional>
#include <thread>

namespace kf {
namespace {

// The layout of a call whose memory may be gone when it is looked at.
AnyParams without_memory(Op op, const void* params) {
  AnyParams copy(op);
  std::memcpy(copy.data(), params, op_info(op).params_bytes);
  for (const Slot& s : slots_of(op, copy.data())) s.tensor->data = nullptr;
  return copy;
}

}  // namespace

void CallLog::on_call(const CallRecord& r) {
  counters_.on_call(r);
  std::lock_guard lock(mutex_);
  key_.assign(r.kernel).append(1, ' ').append(r.shapes);
  auto it = distinct_.find(key_);
  if (it == distinct_.end() && distinct_.size() < kMaxDistinct && r.params != nullptr)
    it = distinct_
             .emplace(key_,
                      Distinct{without_memory(r.op, r.params), r.shapes, r.kernel, 0, r.launches, r.fallback})
             .first;
  if (it != distinct_.end()) ++it->second.calls;
  if (r.seconds < 0) return;
  spans_.push_back({r.op, r.kernel, r.shapes, r.start, r.seconds,
                    std::hash<std::thread::id>{}(std::this_thread::get_id())});
  if (spans_.size() > kMaxSpans) spans_.pop_front();
}

std::vector<CallLog::Distinct> CallLog::distinct() const {
  std::lock_guard lock(mutex_);
  std::vector<Distinct> all;
  for (const auto& [key, d] : distinct_) all.push_back(d);
  return all;
}

std::vector<CallLog::Span> CallLog::spans() const {
  std::lock_guard lock(mutex_);
  return {spans_.begin(), spans_.end()};
}

void CallLog::reset() {
  counters_.reset();
  std::lock_guard lock(mutex_);
  distinct_.clear();
  spans_.clear();
}

}  // namespace kf
