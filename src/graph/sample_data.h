// Generated operands for measuring a piece of a graph: floats at random, tables and ids that are valid
// together.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "kf/dispatch.h"
#include "kf/graph.h"

namespace kf {

using SampleData = StoredTensor;

// One for every input of a graph without symbolic dimensions, on the host.
std::map<std::string, SampleData> sample_inputs(const Graph& graph);
// Bytes from the lowest element to the highest, and those of them that lie before the first: of negative strides.
std::size_t span_bytes(const TensorView& t);
std::size_t bytes_before(const TensorView& t);
// A copy on the dispatcher's device, and one on the host of what lies on the device.
SampleData copy_to(const Dispatcher& dispatcher, const SampleData& data);
SampleData copy_from(const Dispatcher& dispatcher, const TensorView& tensor);

// The largest |a - b| over the largest finite |a|, elements taken in row-major order; infinite where one is
// NaN and the other is not. Integers: 0 where all are equal, else infinite.
double relative_difference(const TensorView& a, const TensorView& b);

}  // namespace kf
