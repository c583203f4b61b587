// Weights on the device of an engine.
#pragma once

#include <vector>

#include "kf/dispatch.h"
#include "kf/model.h"

namespace kf {

// The weights as the dispatcher's kernels read them: those on the host are copied to its device, into `owned`; those that are
// there already stay where they are. Waits until all are there. Throws invalid_argument for weights elsewhere.
NamedTensors place_weights(const NamedTensors& weights, const Dispatcher& dispatcher, const Launch& launch,
                           std::vector<StoredTensor>& owned);
RopeViews place_rope_tables(const ModelRope& rope, const Dispatcher& dispatcher, const Launch& launch,
                            std::vector<StoredTensor>& owned);

}  // namespace kf
