#include "kf/host_reference.h"

#include <cstddef>
#include <cstring>

#include "graph/sample_data.h"
#include "kf/dispatch.h"

namespace kf {
namespace {

AnyParams copy_params(Op op, const void* params) {
  AnyParams copy(op);
  std::memcpy(copy.data(), params, op_info(op).params_bytes);
  return copy;
}

// Its own: the shared ones may be making a dispatcher, whose table asks for these rows.
Dispatcher& host() {
  static Dispatcher* const dispatcher = new Dispatcher(backend_by_name("cpu"));
  return *dispatcher;
}

const Kernel* cpu_reference(Op op) {
  for (const Kernel* k : host().kernels(op))
    if (k->families == kReference) return k;
  return nullptr;
}

// As the CPU's reference says of the same layouts on the host.
Support supports(Op op, const void* params) {
  AnyParams on_host = copy_params(op, params);
  for (const Slot& s : slots_of(op, on_host.data()))
    if (s.tensor->present()) s.tensor->data = nullptr, s.tensor->device = {};
  return cpu_reference(op)->supports(on_host.data(), {host().caps(), host(), host().num_threads(), nullptr});
}

void run(Op op, const void* params, const Dispatcher& device, const RunContext& ctx) {
  const Launch launch{ctx.stream};
  AnyParams on_host = copy_params(op, params);
  struct Written {
    const void* from;
    void* to;
    std::size_t bytes;
  };
  std::vector<StoredTensor> copies;
  std::vector<Written> written;
  device.synchronize(launch);
  for (const Slot& s : slots_of(op, on_host.data())) {
    if (!s.tensor->present()) continue;
    const TensorView there = *s.tensor;
    // Outputs too: what lies between their rows goes back as it was.
    copies.push_back(copy_from(device, there));
    *s.tensor = copies.back().view;
    if (s.role != Role::in) {
      void* lowest = static_cast<std::byte*>(there.data) - bytes_before(there);
      written.push_back({copies.back().storage.get(), lowest, span_bytes(there)});
    }
  }
  host().run(op, on_host.data(), {.families = kReference});
  for (const Written& w : written) device.copy(w.to, w.from, w.bytes, CopyDirection::to_device, launch);
  device.synchronize(launch);
}

}  // namespace

std::vector<Kernel> host_reference_kernels(const std::string& backend) {
  std::vector<Kernel> rows;
  for (const OpInfo& info : all_ops()) {
    const Op op = info.op;
    if (cpu_reference(op) == nullptr) continue;
    Kernel k;
    k.name = backend + "::" + info.name + "_reference";
    k.op = op;
    k.families = kReference;
    k.condition = "the CPU's reference, on copies of the operands";
    k.graph_safe = false;
    k.supports = [op](const void* params, const PlanContext&) { return supports(op, params); };
    k.prepare = [](const void*, const PlanContext& ctx) {
      // A dispatcher outlives its plans.
      return Prepared{
          .state = {std::shared_ptr<void>(), &ctx.dispatcher}, .launches = 0, .graph_safe = false};
    };
    k.run = [op](const void* params, const void* state, const RunContext& ctx) {
      run(op, params, *static_cast<const Dispatcher*>(state), ctx);
    };
    rows.push_back(std::move(k));
  }
  return rows;
}

}  // namespace kf
