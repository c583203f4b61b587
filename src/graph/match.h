// Finding a pattern in a graph.
#pragma once

#include <optional>

#include "graph/rewrite.h"

namespace kf {

// The pattern with its last step at `anchor`, where a replacement would be legal:
//   - every value that somebody else reads is an output of the replacement, and no other is a graph output;
//   - no other node stands between matched ones in dependence order, reads and in-place writes of the same memory
//     included;
//   - attributes that the replacement does not take over have their default values;
//   - the replacement's outputs have the dtype and elements of the values that they take over, and its operands pass
//     the op's own validation.
std::optional<Match> find_match(const GraphRewriter& graph, const Pattern& pattern, int anchor);

}  // namespace kf
