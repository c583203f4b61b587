// Measured fusion: the matched nodes and their replacement, each compiled as a small graph, compared and timed.
#pragma once

#include <string>

#include "graph/rewrite.h"
#include "kf/dispatch.h"
#include "kf/verdict_store.h"

namespace kf {

// The kernels that a fused op may be served by; the unfused form may use vanilla ones besides.
inline constexpr unsigned kFusedFamilies = kCustom | kFused | kLibrary;

// The two forms of a match, each as a graph of its own with inputs of the same names.
struct Trial {
  Graph unfused, fused;

  // Cuts them out of `graph`. `sizes`: its values, which may have other dimensions. Throws invalid_argument
  // where an op does not take those.
  Trial(const GraphRewriter& graph, const Match& match, const Graph& sizes);
  // The ops of both forms, with the dtypes, shapes and attributes of each.
  std::string signature() const;
};

// Fills the figures, `keep` and `reason` of a verdict. Throws what planning or running throws.
void measure(const Trial& trial, Dispatcher& dispatcher, Verdict& verdict);

}  // namespace kf
