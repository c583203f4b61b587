// The dispatcher: walks a backend's kernel table in order and makes a plan with the first kernel that accepts.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "kf/backend.h"
#include "kf/kernel.h"
#include "kf/telemetry.h"

namespace kf {

// Which kernels a call may use.
struct Selection {
  unsigned families = kCustom | kFused | kLibrary;
  bool allow_fallback =
      false;                // else a call that these families cannot serve is an error listing every reason
  std::string kernel = {};  // non-empty: exactly this row
  bool graph_safe = false;  // only kernels whose launches may be recorded and replayed
  // Only kernels that give a row the same bits in every batch (Kernel::batch_invariant); no other is fallen back to.
  bool batch_invariant = false;
  // Products of f32 operands may round them to TF32's 11 bits (a relative 2^-11), where matrix units take that; sums stay f32.
  bool tf32 = false;
  bool operator==(const Selection&) const = default;
};

// Where a call runs, which is no part of its plan.
struct Launch {
  void* stream = nullptr;  // a queue of the device, as its backend knows it; null: the default one
};

// The choice of a kernel for params of one layout, with all that running it needs. Immutable, shared between threads.
class Plan {
 public:
  const Kernel& kernel() const { return *kernel_; }
  std::size_t workspace_bytes() const { return prepared_.workspace_bytes; }
  int launches() const { return prepared_.launches; }
  bool is_fallback() const { return !fallback_reason_.empty(); }
  // What the kernels of the configured families said, where another took the call.
  const std::string& fallback_reason() const { return fallback_reason_; }
  // Whether run() may be recorded into a graph of launches.
  bool graph_safe() const { return kernel_->graph_safe && prepared_.graph_safe; }
  Cost cost() const { return cost_; }
  const std::string& shapes() const { return shapes_; }
  // Runs on params of the planned layout; does not allocate, search, validate or record.
  void run(const void* params, const RunContext& ctx) const {
    kernel_->run(params, prepared_.state.get(), ctx);
  }

 private:
  friend class Dispatcher;
  const Kernel* kernel_ = nullptr;
  Prepared prepared_;
  Cost cost_;
  std::string shapes_;
  std::string fallback_reason_;
};

// One row of an explanation, in table order.
struct Explained {
  std::string kernel;
  std::string families;
  bool selected = false;   // would run
  bool supported = false;  // would accept the call
  bool allowed = false;    // is of a configured family
  std::string reason;      // why not, where not supported or not allowed
};

inline constexpr int kMaxThreads = 4096;

struct DispatcherOptions {
  int num_threads =
      0;  // up to kMaxThreads; 0: as the backend's capabilities say (KF_NUM_THREADS, else the cores)
  Sink* sink = nullptr;  // not owned
  int device_index = 0;
};

// A tensor with the memory that it lies in, of whatever device.
struct StoredTensor {
  std::shared_ptr<void> storage;
  TensorView view;
};

// The kernels of one device. Safe for concurrent calls.
class Dispatcher {
 public:
  explicit Dispatcher(const Backend& backend, DispatcherOptions options = {});
  Dispatcher(const Dispatcher&) = delete;

  // Validates, and returns a plan (from the cache where it may). With `packs`, weights are constant.
  std::shared_ptr<const Plan> plan(Op op, const void* params, const Selection& selection = {},
                                   PackCache* packs = nullptr);
  template <class P>
  std::shared_ptr<const Plan> plan(const P& params, const Selection& selection = {},
                                   PackCache* packs = nullptr) {
    return plan(P::kOp, &params, selection, packs);
  }
  // One call: validates shapes, memory and tables, plans, runs, records. On error nothing was written. On a device it
  // returns once the work is enqueued.
  void run(Op op, const void* params, const Selection& selection = {}, const Launch& launch = {});
  void run(Op op, const void* params, const Launch& launch) { run(op, params, Selection{}, launch); }
  template <class P>
  void run(const P& params, const Selection& selection = {}, const Launch& launch = {}) {
    run(P::kOp, &params, selection, launch);
  }
  template <class P>
  void run(const P& params, const Launch& launch) {
    run(P::kOp, &params, Selection{}, launch);
  }
  // Runs a plan and tells the sink. The operands are taken as they are: validating them is the caller's.
  void execute(const Plan& plan, const void* params, void* workspace, const Launch& launch = {}) const;

  std::vector<Explained> explain(Op op, const void* params, const Selection& selection = {});
  template <class P>
  std::vector<Explained> explain(const P& params, const Selection& selection = {}) {
    return explain(P::kOp, &params, selection);
  }

  // Adds a user's kernel in front of the table. Throws invalid_argument where a function is missing, another kernel
  // has the name, or the kernel is for another device type.
  void add_kernel(Kernel kernel);
  std::vector<const Kernel*> kernels() const;
  std::vector<const Kernel*> kernels(Op op) const;

  // Memory of the device, 64-byte aligned, freed in the order of the stream. Throws resource_exhausted.
  std::shared_ptr<void> allocate(std::size_t bytes, const Launch& launch = {}) const;
  // In the order of the stream; on the CPU at once.
  void copy(void* to, const void* from, std::size_t bytes, CopyDirection direction,
            const Launch& launch = {}) const;
  void synchronize(const Launch& launch = {}) const;
  // A contiguous tensor in such memory.
  StoredTensor make_tensor(DType dtype, std::span<const std::int64_t> shape, const Launch& launch = {}) const;
  // Host memory that copies to and from the device take as it is.
  std::shared_ptr<void> allocate_staging(std::size_t bytes) const;
  bool on_host() const { return backend_.memory.is_host(); }

  const Backend& backend() const { return backend_; }
  const DeviceCaps& caps() const { return caps_; }
  int num_threads() const { return num_threads_; }
  Sink* sink() const { return sink_; }
  void set_sink(Sink* sink) { sink_ = sink; }

 private:
  std::shared_ptr<const Plan> make_plan(Op op, const void* params, const Selection& selection,
                                        PackCache* packs);
  void refuse_recording(const Plan& plan, const Launch& launch) const;
  struct Cached {
    std::shared_ptr<const Plan> plan;
    std::list<const std::string*>::iterator age;
  };

  const Backend& backend_;
  DeviceCaps caps_;
  int num_threads_;
  Sink* sink_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::uint64_t table_version_ = 0;  // counts additions to kernels_
  std::unordered_map<std::string, Cached> plans_;
  std::list<const std::string*> plan_ages_;  // keys of plans_, the latest used first
  std::vector<std::pair<std::shared_ptr<void>, std::size_t>> workspaces_;  // of the host, idle
};

// Dispatchers by device, each made on first use. Safe for concurrent use.
class DispatcherSet {
 public:
  // `options` are those of every dispatcher, but for the device's index. A device is served by the first of `backends` of its
  // type that can be used here; none given: all_backends(), those that come later too.
  explicit DispatcherSet(DispatcherOptions options = {}, std::span<const Backend* const> backends = {});
  // Throws unavailable with the cause: no such backend is compiled in, or it cannot be used here.
  Dispatcher& on(Device device);
  // That of the device which the call's operands lie on.
  Dispatcher& serving(Op op, const void* params);
  // In front of the table of every device of the kernel's type, those made later too.
  void add_kernel(Kernel kernel);
  std::vector<const Dispatcher*> made() const;

 private:
  std::span<const Backend* const> backends() const { return given_.empty() ? all_backends() : given_; }

  DispatcherOptions options_;
  std::span<const Backend* const> given_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Dispatcher>> made_;
  std::vector<Kernel> added_;
};

// The dispatchers that the free functions use, made on first use.
Dispatcher& default_dispatcher(Device device = {});
// The one of the device which the call's operands lie on.
Dispatcher& default_dispatcher(Op op, const void* params);

}  // namespace kf
