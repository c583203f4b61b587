// Sums over calls.
#pragma once

#include "kf/telemetry.h"

namespace kf {

void accumulate(Counters::Entry& sums, const CallRecord& call);

}  // namespace kf
