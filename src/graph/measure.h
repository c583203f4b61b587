// Measured fusion: the matched nodes and their replacement, each compiled as a small graph, compared and
// timed.
#pragma once

#include "graph/rewrite.h"

namespace kf {

// The kernels that a fused op may be served by; the unfused form may use vanilla ones besides.
inline constexpr unsigned kFusedFamilies = kCustom | kFused | kLibrary;

// Fills the figures, `keep` and `reason` of a verdict. Throws what planning or running throws.
void measure(const GraphRewriter& graph, const Match& match, Dispatcher& dispatcher, Verdict& verdict);

}  // namespace kf
