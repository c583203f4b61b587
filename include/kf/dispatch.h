// The dispatcher: walks a backend's kernel table in order and makes a plan with the first kernel that accepts.
#pragma once

#include <memory>
#include <mutex>
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
  bool allow_fallback = false;  // else a call that these families cannot serve is an error listing every reason
  std::string kernel = {};      // non-empty: exactly this row
  bool operator==(const Selection&) const = default;
};

// The choice of a kernel for params of one layout, with all that running it needs. Immutable, shared between threads.
class Plan {
 public:
  const Kernel& kernel() const { return *kernel_; }
  std::size_t workspace_bytes() const { return prepared_.workspace_bytes; }
  int launches() const { return prepared_.launches; }
  bool is_fallback() const { return fallback_; }
  Cost cost() const { return cost_; }
  const std::string& shapes() const { return shapes_; }
  // Runs on params of the planned layout; does not allocate, search, validate or record.
  void run(const void* params, const RunContext& ctx) const { kernel_->run(params, prepared_.state.get(), ctx); }

 private:
  friend class Dispatcher;
  const Kernel* kernel_ = nullptr;
  Prepared prepared_;
  Cost cost_;
  std::string shapes_;
  bool fallback_ = false;
};

// One row of an explanation, in table order.
struct Explained {
  std::string kernel;
  std::string families;
  bool selected = false;    // would run
  bool supported = false;   // would accept the call
  bool allowed = false;     // is of a configured family
  std::string reason;       // why not, where not supported or not allowed
};

struct DispatcherOptions {
  int num_threads = 0;   // 0: as the backend's capabilities say (KF_NUM_THREADS, else the cores)
  Sink* sink = nullptr;  // not owned
  int device_index = 0;
};

class Dispatcher {
 public:
  explicit Dispatcher(const Backend& backend, DispatcherOptions options = {});
  Dispatcher(const Dispatcher&) = delete;

  // Validates, and returns a plan (from the cache where it may). With `packs`, weights are constant.
  std::shared_ptr<const Plan> plan(Op op, const void* params, const Selection& selection = {},
                                   PackCache* packs = nullptr);
  template <class P>
  std::shared_ptr<const Plan> plan(const P& params, const Selection& selection = {}, PackCache* packs = nullptr) {
    return plan(P::kOp, &params, selection, packs);
  }
  // One call: validates shapes and tables, plans, runs, records. On error nothing was written.
  void run(Op op, const void* params, const Selection& selection = {});
  template <class P>
  void run(const P& params, const Selection& selection = {}) {
    run(P::kOp, &params, selection);
  }
  // Runs a plan and tells the sink.
  void execute(const Plan& plan, const void* params, void* workspace) const;

  std::vector<Explained> explain(Op op, const void* params, const Selection& selection = {});
  template <class P>
  std::vector<Explained> explain(const P& params, const Selection& selection = {}) {
    return explain(P::kOp, &params, selection);
  }

  // Adds a user's kernel in front of the table.
  void add_kernel(Kernel kernel);
  std::vector<const Kernel*> kernels() const;
  std::vector<const Kernel*> kernels(Op op) const;

  const Backend& backend() const { return backend_; }
  const DeviceCaps& caps() const { return caps_; }
  int num_threads() const { return num_threads_; }
  Sink* sink() const { return sink_; }
  void set_sink(Sink* sink) { sink_ = sink; }

 private:
  std::shared_ptr<const Plan> make_plan(Op op, const void* params, const Selection& selection, PackCache* packs);
  void check_device(Op op, const void* params) const;

  const Backend& backend_;
  DeviceCaps caps_;
  int num_threads_;
  Sink* sink_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Kernel>> kernels_;
  std::unordered_map<std::string, std::shared_ptr<const Plan>> plans_;
  std::vector<std::pair<std::shared_ptr<void>, std::size_t>> workspaces_;  // idle ones
};

// The dispatcher that the free functions use: the CPU's, made on first use.
Dispatcher& default_dispatcher();

}  // namespace kf
