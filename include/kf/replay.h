// What fusion gained for a call: the call again on generated data, beside its unfused composition.
#pragma once

#include <string>

#include "kf/dispatch.h"

namespace kf {

struct Replayed {
  std::string kernel, baseline;              // rows that ran
  double seconds = 0, baseline_seconds = 0;  // of one call, the least of those timed
  double bytes = 0, baseline_bytes = 0;      // of results, intermediates and workspaces at their peak
  int launches = 0, baseline_launches = 0;
  double max_error = 0;  // largest difference of the results over their largest value
  std::string problem;   // what else was wrong: the first side wrote outside its results
  // The results were the same, within what the dtypes allow; else the times mean nothing.
  bool agreed = false;
};

// Runs `params` (their layout: memory is not looked at) as `selection` chooses and as `baseline` does, in turns, for about
// `seconds`; 0 only compares them. Weights count as constant on both sides. Throws not_implemented where a side has no
// kernel for the call.
Replayed replay(Op op, const void* params, Dispatcher& dispatcher, const Selection& selection,
                const Selection& baseline, double seconds);

}  // namespace kf
