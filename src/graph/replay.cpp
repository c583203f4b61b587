#include "kf/replay.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <vector>

#include <fmt/format.h>

#include "graph/sample_data.h"
#include "kf/error.h"
#include "kf/ops/quantization.h"

namespace kf {
namespace {

AnyParams copy_params(Op op, const void* params) {
  AnyParams copy(op);
  std::memcpy(copy.data(), params, op_info(op).params_bytes);
  return copy;
}

// Valid operands for a call, by slot name: those of a graph of this one op.
std::map<std::string, SampleData> sample_operands(Op op, const void* params) {
  Graph g;
  AnyParams attributes = copy_params(op, params);
  Bindings bound;
  for (const Slot& s : slots_of(op, attributes.data()))
    if (s.role != Role::out && s.tensor->present()) bound.emplace_back(s.name, g.input(s.name, *s.tensor));
  g.call(attributes, bound);
  return sample_inputs(g);
}

// Memory of a result between bytes that nobody may write; on a device without them.
struct Guarded {
  static constexpr std::size_t kBytes = 256;
  static constexpr unsigned char kValue = 0xA5;
  const char* name;
  TensorView view;
  std::size_t payload;
  bool on_host;
  std::shared_ptr<void> memory;

  Guarded(Dispatcher& d, const char* slot, const TensorView& layout)
      : name(slot),
        view(layout),
        payload(span_bytes(layout)),
        on_host(d.on_host()),
        memory(d.allocate(payload + 2 * kBytes)) {
    auto* begin = static_cast<unsigned char*>(memory.get());
    if (on_host) std::memset(begin, kValue, payload + 2 * kBytes);
    view.data = begin + kBytes + bytes_before(layout);
  }
  bool intact() const {
    if (!on_host) return true;
    const auto* begin = static_cast<const unsigned char*>(memory.get());
    const auto is_guard = [](unsigned char byte) { return byte == kValue; };
    return std::all_of(begin, begin + kBytes, is_guard) &&
           std::all_of(begin + kBytes + payload, begin + payload + 2 * kBytes, is_guard);
  }
};

// One way of doing the call, on memory of its own.
class Side {
 public:
  Side(Op op, const void* params, const std::map<std::string, SampleData>& data, Dispatcher& d,
       const Selection& selection, PackCache& packs)
      : dispatcher_(d), params_(copy_params(op, params)) {
    for (const Slot& s : slots_of(op, params_.data())) {
      if (!s.tensor->present()) continue;
      if (s.role == Role::out) {
        guarded_.push_back(Guarded(d, s.name, *s.tensor));
        storage_.push_back({guarded_.back().memory, guarded_.back().view});
      } else {
        storage_.push_back(copy_to(d, data.at(s.name)));
      }
      *s.tensor = storage_.back().view;
      if (s.role == Role::in) inputs_.emplace_back(s.name, *s.tensor);
      if (s.role != Role::in) results_.push_back(*s.tensor);
      if (s.role == Role::out) bytes_ += static_cast<double>(s.tensor->nbytes());
    }
    plan_ = d.plan(op, params_.data(), selection, &packs);
    workspace_ = d.allocate(plan_->workspace_bytes());
    bytes_ += static_cast<double>(plan_->workspace_bytes());
    d.synchronize();
  }

  double run_seconds() {
    const RunContext ctx{workspace_.get(), dispatcher_.num_threads(), nullptr};
    const auto start = std::chrono::steady_clock::now();
    plan_->run(params_.data(), ctx);
    dispatcher_.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const Plan& plan() const { return *plan_; }
  double bytes() const { return bytes_; }
  std::vector<SampleData> results() const {
    std::vector<SampleData> all;
    for (const TensorView& t : results_) all.push_back(copy_from(dispatcher_, t));
    return all;
  }
  // The operand that is no longer what was given; empty: none.
  std::string changed(const std::map<std::string, SampleData>& data) const {
    for (const auto& [name, view] : inputs_)
      if (std::memcmp(copy_from(dispatcher_, view).storage.get(), data.at(name).storage.get(),
                      span_bytes(view)) != 0)
        return name;
    return {};
  }
  // The result that was written beyond; empty: none.
  std::string written_beyond() const {
    for (const Guarded& g : guarded_)
      if (!g.intact()) return g.name;
    return {};
  }

 private:
  Dispatcher& dispatcher_;
  AnyParams params_;
  std::vector<Guarded> guarded_;
  std::vector<SampleData> storage_;
  std::vector<TensorView> results_;
  std::vector<std::pair<std::string, TensorView>> inputs_;
  std::shared_ptr<const Plan> plan_;
  std::shared_ptr<void> workspace_;
  double bytes_ = 0;
};

bool has_products(Op op) {
  switch (op) {
    case Op::linear:
    case Op::qkv_linear:
    case Op::gated_ffn:
    case Op::lm_head_argmax:
    case Op::attention:
    case Op::attention_scores:
    case Op::attention_values:
      return true;
    default:
      return false;
  }
}

// Sums in another order; for 16-bit data also intermediates that one side rounds; for low-bit weights activations that
// kernels may quantize to 8 bits. `tf32`: factors of f32 products may be rounded to TF32, which has f16's bits.
double allowed_difference(Op op, const void* params, bool tf32) {
  double bound = tf32 && has_products(op) ? 1e-2 : 1e-4;
  AnyParams copy = copy_params(op, params);
  for (const Slot& s : slots_of(op, copy.data())) {
    if (!s.tensor->present()) continue;
    const DType t = s.tensor->dtype;
    if (t == DType::f16) bound = std::max(bound, 1e-2);
    if (t == DType::bf16) bound = std::max(bound, 4e-2);
    if (dtype_info(t).is_block || needs_scales(t)) bound = std::max(bound, 2e-2);
  }
  return bound;
}

}  // namespace

Replayed replay(Op op, const void* params, Dispatcher& dispatcher, const Selection& selection,
                const Selection& baseline, double seconds) {
  PackCache packs;
  const auto data = sample_operands(op, params);
  Side fused(op, params, data, dispatcher, selection, packs),
      plain(op, params, data, dispatcher, baseline, packs);
  Replayed r;
  r.kernel = fused.plan().kernel().name;
  r.baseline = plain.plan().kernel().name;
  r.bytes = fused.bytes();
  r.baseline_bytes = plain.bytes();
  r.launches = fused.plan().launches();
  r.baseline_launches = plain.plan().launches();
  double spent = fused.run_seconds() + plain.run_seconds();  // the first of each is compared, and warms up
  const auto a = fused.results(), b = plain.results();
  for (std::size_t i = 0; i < a.size(); ++i)
    r.max_error = std::max(r.max_error, relative_difference(b[i].view, a[i].view));
  if (const std::string name = fused.written_beyond(); !name.empty())
    r.problem = fmt::format("it writes outside {}", name);
  else if (const std::string changed = fused.changed(data); !changed.empty())
    r.problem = fmt::format("it writes to {}, which it may only read", changed);
  r.agreed = r.problem.empty() &&
             r.max_error <= allowed_difference(op, params, selection.tf32 && !dispatcher.on_host());
  if (seconds <= 0) return r;  // only compared
  // In turns, so that both meet the same disturbances; the least of each, which disturbances only add to.
  for (int round = 0; round == 0 || (spent < seconds && round < 1000); ++round) {
    const double f = fused.run_seconds(), p = plain.run_seconds();
    r.seconds = round == 0 ? f : std::min(r.seconds, f);
    r.baseline_seconds = round == 0 ? p : std::min(r.baseline_seconds, p);
    spent += f + p;
  }
  return r;
}

}  // namespace kf
