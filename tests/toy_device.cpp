#include "toy_device.h"

#include <cstdlib>
#include <cstring>

#include "kf/error.h"

namespace kf::tests {
namespace {

constexpr std::uintptr_t kShift = std::uintptr_t{1} << 62;  // no address of the host
thread_local bool recording = false;
thread_local int recorded_kernels = 0;

void* shifted(void* p) { return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(p) + kShift); }
void* back(const void* p) { return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(p) - kShift); }

// The CPU's kernel over shifted addresses.
Kernel on_toy(const Kernel& k) {
  Kernel toy = k;
  toy.name = "toy" + k.name.substr(k.name.find("::"));
  toy.run = [k](const void* params, const void* state, const RunContext& ctx) {
    toy_counts().last_stream = ctx.stream;
    if (recording) {
      ++recorded_kernels;
      return;
    }
    ++toy_counts().kernel_runs;
    alignas(std::max_align_t) std::byte copy[kMaxParamsBytes];
    std::memcpy(copy, params, op_info(k.op).params_bytes);
    for (const Slot& s : slots_of(k.op, copy))
      if (s.tensor->present() && s.tensor->data) s.tensor->data = back(s.tensor->data);
    RunContext host = ctx;
    if (ctx.workspace) host.workspace = back(ctx.workspace);
    k.run(copy, state, host);
  };
  // Weights would be packed from shifted addresses.
  toy.prepare = [k](const void* params, const PlanContext& ctx) {
    return k.prepare(params, {ctx.caps, ctx.dispatcher, ctx.num_threads, nullptr});
  };
  toy.supports = [k](const void* params, const PlanContext& ctx) {
    return k.supports(params, {ctx.caps, ctx.dispatcher, ctx.num_threads, nullptr});
  };
  return toy;
}

using Enqueue = std::function<void(void* stream)>;
struct ToyRecording {
  Enqueue enqueue;
  int kernels;
};

}  // namespace

ToyCounts& toy_counts() {
  static ToyCounts counts;
  return counts;
}

Backend make_toy_backend(const std::function<bool(const Kernel&)>& keep) {
  Backend b;
  b.name = "toy";
  b.device_type = kToy.type;
  b.available = [] { return Support::yes(); };
  b.capabilities = [](int index) {
    if (index != 0)
      throw Error(ErrorCode::unavailable, "toy: expected device 0, got " + std::to_string(index));
    DeviceCaps caps = backend_by_name("cpu").capabilities(0);
    caps.device = kToy;
    caps.name = "toy";
    return caps;
  };
  b.kernels = [keep] {
    std::vector<Kernel> all;
    for (const Kernel& k : backend_by_name("cpu").kernels())
      if (keep(k)) all.push_back(on_toy(k));
    return all;
  };
  b.memory.allocate = [](int, std::size_t bytes, void*) {
    ++toy_counts().live_allocations;
    return shifted(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  };
  b.memory.free = [](int, void* p, void*) {
    --toy_counts().live_allocations;
    std::free(back(p));
  };
  b.memory.copy = [](int, void* to, const void* from, std::size_t bytes, CopyDirection direction, void*) {
    if (direction == CopyDirection::to_device) ++toy_counts().copies_to_device;
    if (direction != CopyDirection::to_host) to = back(to);
    if (direction != CopyDirection::to_device) from = back(from);
    std::memcpy(to, from, bytes);
  };
  b.memory.synchronize = [](int, void*) { ++toy_counts().synchronisations; };
  return b;
}

LaunchRecorder toy_recorder() {
  return {[](int, const Enqueue& enqueue) -> std::shared_ptr<void> {
            recording = true;
            recorded_kernels = 0;
            enqueue(nullptr);  // what cannot be recorded would throw
            recording = false;
            return std::make_shared<ToyRecording>(ToyRecording{enqueue, recorded_kernels});
          },
          [](int, void* recorded, void* stream) {
            ++toy_counts().replays;
            static_cast<ToyRecording*>(recorded)->enqueue(stream);
          },
          [](const void* recorded) { return static_cast<const ToyRecording*>(recorded)->kernels; }};
}

}  // namespace kf::tests
