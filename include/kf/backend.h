// Backends: where ops run. A backend is a device type, what the device offers, how its memory is reached, and an
// ordered table of kernels.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kf/kernel.h"

namespace kf {

enum class CopyDirection { to_device, to_host, on_device };

// How the core reaches memory that the host cannot address. The first four are given, or none: none means host memory,
// which the core allocates and copies itself. A stream is the backend's own handle; null is its default stream.
struct DeviceMemory {
  // At least `bytes`, 64-byte aligned, for use by what the stream is given after this call. Does not wait for the
  // device, so that a call's workspace costs little. Throws resource_exhausted.
  std::function<void*(int device_index, std::size_t bytes, void* stream)> allocate;
  // Once all that the stream was given before is done. Does not throw.
  std::function<void(int device_index, void* memory, void* stream)> free;
  // In the order of the stream. The host's side must stay as it is until synchronize().
  std::function<void(int device_index, void* to, const void* from, std::size_t bytes, CopyDirection direction,
                     void* stream)>
      copy;
  // Waits for all that the stream was given. Throws what the device reports.
  std::function<void(int device_index, void* stream)> synchronize;
  // Host memory that copies reach without a detour, so that none waits for the host: "pinned". Both functions, or none:
  // then the host's plain memory serves.
  std::function<void*(int device_index, std::size_t bytes)> allocate_host = {};
  std::function<void(void* memory)> free_host = {};

  bool is_host() const { return !allocate; }
};

// Recording what a stream is given, so that one call gives it again. The first three functions, or none.
struct LaunchRecorder {
  // What `enqueue` gives the stream that it is handed; none of it runs. Throws what the device or `enqueue` does.
  std::function<std::shared_ptr<void>(int device_index, const std::function<void(void* stream)>& enqueue)>
      record;
  // All of it, over the same memory, in the order of `stream`.
  std::function<void(int device_index, void* recording, void* stream)> replay;
  // Kernels in a recording.
  std::function<int(const void* recording)> launches;
  // Whether what the stream is given is being recorded, by record() or by another library. May be absent where the others
  // are not.
  std::function<bool(int device_index, void* stream)> is_recording = {};
};

// Ranges that a profiler shows, one within another. Both functions, or none: nobody looks.
struct Ranges {
  void (*push)(const char* name) = nullptr;
  void (*pop)() = nullptr;
};

// Threads that Backend::hold_threads() holds.
class HeldThreads {
 public:
  // What is read after the next kernel: soon by the caller's thread, and first by each of the threads. They ask for it where they
  // would only wait. Both stay as they are until the next call.
  virtual void expect(std::span<const MemoryRange> soon,
                      std::span<const std::vector<MemoryRange>> by_thread) = 0;

 protected:
  ~HeldThreads() = default;
};

struct Backend {
  std::string name;  // "cpu", "cuda", ...
  DeviceType device_type{};
  // Why the backend cannot be used on this machine; yes when it can.
  std::function<Support()> available;
  // What device `index` offers. Throws unavailable where there is no such device.
  std::function<DeviceCaps(int index)> capabilities;
  // Every kernel, best first, the reference last. Called once a dispatcher, and for a list where there is no device.
  std::function<std::vector<Kernel>()> kernels;
  DeviceMemory memory = {};
  // Milliseconds that the device takes for what one call of `enqueue` gives the stream that it is handed: the median over
  // many in a row, by the device's own clock and without the gaps that launching leaves. Absent: the host's clock is used.
  std::function<double(int device_index, const std::function<void(void* stream)>& enqueue)> time = {};
  LaunchRecorder recorder = {};
  Ranges ranges = {};  // each run of a kernel is one, by its name
  // Calls steps() while the host's threads for the kernels that it runs, all of them Kernel::on_held_threads, stay ready: so that
  // many short kernels in a row need not gather them again and again. Throws what steps() does. Absent: nothing to hold.
  std::function<void(int num_threads, const std::function<void(HeldThreads&)>& steps)> hold_threads = {};
};

// All that is compiled in (src/backends/backends.cpp), and after it what was registered and the plug-ins that were loaded so
// far (kf/plugin.h). The span keeps what it has.
std::span<const Backend* const> all_backends();
// Adds a backend for the rest of the process; where several serve a device type, the first that can be used here does.
// Throws invalid_argument where another has the name, or a function is missing.
const Backend& register_backend(Backend backend);
// Throws unavailable, naming what there is.
const Backend& backend_by_name(const std::string& name);
// The device that a name means: "cuda:1"; "cuda" is "cuda:0". Throws invalid_argument.
Device parse_device(std::string_view name);

}  // namespace kf
