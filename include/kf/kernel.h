// Kernels: how an op is done. A kernel is a row of a backend's ordered table; authors fill one in with make_kernel().
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kf/op.h"

namespace kf {

class Dispatcher;

// Yes, or no with a reason that quotes what is taken: Support::no("head_dim 80: this kernel takes 64, 128, 256").
class Support {
 public:
  static Support yes() { return Support(); }
  static Support no(std::string reason) {
    Support s;
    s.reason_ = std::move(reason);
    return s;
  }
  explicit operator bool() const { return reason_.empty(); }
  const std::string& reason() const { return reason_; }

 private:
  std::string reason_;
};

// Kernel families, as bits: a row may belong to several (a plain elementwise kernel is its own unfused form).
enum Family : unsigned {
  kReference = 1,  // plain loops, written to be believed
  kVanilla = 2,    // the unfused composition and what it is made of, as an eager framework runs it
  kFused = 4,      // ours
  kLibrary = 8,    // a vendor's or another project's fused kernel
  kCustom = 16,    // registered by the user
};
std::string family_names(unsigned families);  // "fused|vanilla"

// What a device offers, probed once.
struct DeviceCaps {
  Device device;
  std::string name;     // "AMD EPYC 7763, 2 threads"
  std::string isa;      // the best that may be used: "avx2", "avx512"; "sm_90a"; "910B"
  int num_threads = 1;  // cpu: default team size; devices: host threads of one call
  std::size_t l1_bytes = 0, l2_bytes = 0, l3_bytes = 0;
  std::size_t memory_bytes = 0;
};

// Weights in the form that kernels want, made once and shared by all plans over the same weight. Its existence
// in a PlanContext says that weights are constant for the plan's life.
class PackCache {
 public:
  // The pack in `format` of these operands (a weight, and what it is read with), made by `make` on first use. `bytes` is
  // what it takes.
  template <class T>
  std::shared_ptr<T> get(std::initializer_list<const TensorView*> operands, const std::string& format,
                         const std::function<std::shared_ptr<T>(std::size_t* bytes)>& make) {
    return std::static_pointer_cast<T>(get_erased(
        operands, format, [&](std::size_t* bytes) -> std::shared_ptr<void> { return make(bytes); }));
  }
  std::size_t bytes() const;  // of all packs

 private:
  std::shared_ptr<void> get_erased(std::initializer_list<const TensorView*> operands,
                                   const std::string& format,
                                   const std::function<std::shared_ptr<void>(std::size_t*)>& make);
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<void>> packs_;
  std::size_t bytes_ = 0;
};

// What supports() and prepare() may look at.
struct PlanContext {
  const DeviceCaps& caps;
  Dispatcher& dispatcher;  // to plan the ops that a composition is made of
  int num_threads = 1;
  PackCache* packs = nullptr;  // non-null: weights are constant and may be packed
  bool tf32 = false;           // Selection::tf32
};

// What run() works with.
struct RunContext {
  void* workspace = nullptr;  // on the device, 64-byte aligned, as many bytes as prepare() asked for
  int num_threads = 1;
  void* stream = nullptr;  // the caller's queue of the device, as its backend knows it; unused on the CPU
};

struct MemoryRange {
  const void* data = nullptr;
  std::size_t bytes = 0;
};

// What prepare() hands over to run().
struct Prepared {
  std::shared_ptr<void> state;  // the kernel's own; shared by concurrent runs, so run() must not change it
  std::size_t workspace_bytes = 0;
  int launches = 1;        // kernels that one run launches
  bool graph_safe = true;  // as Kernel::graph_safe, where it depends on the call
};

struct Kernel {
  std::string name;  // "cpu::rms_norm_fused"
  Op op{};
  unsigned families = 0;
  std::string condition;  // when it serves, in words: for the support matrix
  std::function<Support(const void* params, const PlanContext&)> supports;
  std::function<Prepared(const void* params, const PlanContext&)> prepare;
  // No allocation, no search, no synchronisation with a device.
  std::function<void(const void* params, const void* state, const RunContext&)> run;
  // Whether run() may be recorded into a graph of launches and replayed: it enqueues everything on the stream, and
  // nothing that it decides on the host depends on the values in tensors.
  bool graph_safe = true;
  // Whether a row of the outputs has the same bits whatever other rows come with it in a call, and whatever the number of
  // threads: what Selection::batch_invariant asks for.
  bool batch_invariant = false;
  // Whether all threads that run() uses are those that Backend::hold_threads() holds: it opens no parallel region of its own.
  bool on_held_threads = false;
  // The weights that one of `threads` threads of run() reads first, in that order: worth asking for before. May be absent.
  std::function<std::vector<MemoryRange>(const void* params, int thread, int threads)> reads_first = {};
  // Whose memory run() works on. A backend's table need not say it.
  DeviceType device_type = DeviceType::cpu;
};

// A row whose run() needs only a workspace (or nothing).
template <class P>
Kernel make_kernel(std::string name, unsigned families, std::string condition,
                   Support (*supports)(const P&, const PlanContext&),
                   void (*run)(const P&, const RunContext&),
                   std::size_t (*workspace)(const P&, const PlanContext&) = nullptr) {
  Kernel k;
  k.name = std::move(name);
  k.op = P::kOp;
  k.families = families;
  k.condition = std::move(condition);
  k.supports = [supports](const void* p, const PlanContext& c) {
    return supports(*static_cast<const P*>(p), c);
  };
  k.prepare = [workspace](const void* p, const PlanContext& c) {
    Prepared r;
    if (workspace) r.workspace_bytes = workspace(*static_cast<const P*>(p), c);
    return r;
  };
  k.run = [run](const void* p, const void*, const RunContext& c) { run(*static_cast<const P*>(p), c); };
  return k;
}

// A row with a state that prepare() makes (a packed weight, a library's primitive).
template <class P, class State>
Kernel make_kernel(std::string name, unsigned families, std::string condition,
                   Support (*supports)(const P&, const PlanContext&),
                   std::shared_ptr<State> (*prepare)(const P&, const PlanContext&,
                                                     std::size_t* workspace_bytes),
                   void (*run)(const P&, const State&, const RunContext&)) {
  Kernel k;
  k.name = std::move(name);
  k.op = P::kOp;
  k.families = families;
  k.condition = std::move(condition);
  k.supports = [supports](const void* p, const PlanContext& c) {
    return supports(*static_cast<const P*>(p), c);
  };
  k.prepare = [prepare](const void* p, const PlanContext& c) {
    Prepared r;
    r.state = prepare(*static_cast<const P*>(p), c, &r.workspace_bytes);
    return r;
  };
  k.run = [run](const void* p, const void* s, const RunContext& c) {
    run(*static_cast<const P*>(p), *static_cast<const State*>(s), c);
  };
  return k;
}

}  // namespace kf
