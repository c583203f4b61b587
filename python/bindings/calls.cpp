// What a CallLog knows, as lists of dictionaries.
#include "bindings.h"

namespace kf::python {

nb::list count_rows(const CallLog& log) {
  return listed(log.counts(), [&](const auto& count) {
    const auto& [key, e] = count;
    nb::dict d;
    d["op"] = key.first;
    d["kernel"] = key.second;
    d["calls"] = e.calls;
    d["launches"] = e.launches;
    d["fallbacks"] = e.fallbacks;
    d["fallback_reason"] = e.fallback_reason;
    d["bytes"] = e.bytes;
    d["flops"] = e.flops;
    d["seconds"] = e.seconds;
    return d;
  });
}

nb::list distinct_rows(const CallLog& log) {
  return listed(log.distinct(), [&](const CallLog::Distinct& c) {
    nb::dict d;
    d["op"] = op_name(c.params.op());
    d["kernel"] = c.kernel;
    d["shapes"] = c.shapes;
    d["calls"] = c.sums.calls;
    d["seconds"] = c.sums.seconds;
    d["launches"] = c.launches;
    d["fallback"] = c.sums.fallbacks > 0;
    return d;
  });
}

}  // namespace kf::python
