// A device whose memory the host cannot address, made of the CPU's kernels: its addresses are shifted, so that whoever
// follows one outside its kernels crashes.
#pragma once

#include <atomic>
#include <functional>

#include "kf/backend.h"

namespace kf::tests {

inline constexpr Device kToy{DeviceType::mlu, 0};

// What the core asked of every toy so far.
struct ToyCounts {
  std::atomic<int> live_allocations{0}, synchronisations{0}, copies_to_device{0};
  std::atomic<int> kernel_runs{0}, replays{0};
  std::atomic<void*> last_stream{nullptr};
};
ToyCounts& toy_counts();

// With those of the CPU's kernels that `keep` takes. It records no launches.
Backend make_toy_backend(const std::function<bool(const Kernel&)>& keep);
// Records: what is enqueued is called again at every replay.
LaunchRecorder toy_recorder();

}  // namespace kf::tests
