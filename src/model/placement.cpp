#include "model/placement.h"

#include <fmt/format.h>

#include "kf/error.h"

namespace kf {
namespace {

std::span<const std::int64_t> shape_of(const TensorView& t) {
  return {t.shape.data(), static_cast<std::size_t>(t.rank)};
}

// Contiguous on the device. Rows of a matrix may lie apart on the host.
StoredTensor copy_to_device(const TensorView& t, const Dispatcher& dispatcher, const Launch& launch) {
  StoredTensor copy = dispatcher.make_tensor(t.dtype, shape_of(t), launch);
  const auto put = [&](const TensorView& to, const TensorView& from) {
    dispatcher.copy(to.data, from.data, from.nbytes(), CopyDirection::to_device, launch);
  };
  if (t.is_contiguous()) {
    put(copy.view, t);
  } else {
    for (std::int64_t row = 0; row < t.dim(0); ++row)
      put(copy.view.slice(0, row, row + 1), t.slice(0, row, row + 1));
  }
  return copy;
}

}  // namespace

NamedTensors place_weights(const NamedTensors& weights, const Dispatcher& dispatcher, const Launch& launch,
                           std::vector<StoredTensor>& owned) {
  const Device device = dispatcher.caps().device;
  NamedTensors placed = weights;
  for (auto& [name, t] : placed) {
    if (t.device == device || name == kRopeFreqsName) continue;
    if (t.device != Device{}) {
      throw_invalid(fmt::format("engine: weight {}: expected it on the host or on {}, got {}", name,
                                to_string(device), to_string(t.device)));
    }
    owned.push_back(copy_to_device(t, dispatcher, launch));
    t = owned.back().view;
  }
  dispatcher.synchronize(launch);
  return placed;
}

RopeViews place_rope_tables(const ModelRope& rope, const Dispatcher& dispatcher, const Launch& launch,
                            std::vector<StoredTensor>& owned) {
  RopeViews placed = rope;
  if (dispatcher.on_host()) return placed;
  for (TensorView* t : {&placed.cos, &placed.sin, &placed.local_cos, &placed.local_sin}) {
    if (!t->present()) continue;
    owned.push_back(copy_to_device(*t, dispatcher, launch));
    *t = owned.back().view;
  }
  dispatcher.synchronize(launch);
  return placed;
}

}  // namespace kf
