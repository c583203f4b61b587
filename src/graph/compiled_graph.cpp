#include "graph/compiled_graph.h"

#include <fmt/format.h>

#include "core/operands.h"
#include "graph/memory_plan.h"
#include "graph/reflect.h"
#include "kf/error.h"

namespace kf {
namespace {

// Where a value lies: in the memory of its root, so many bytes from the start.
struct Location {
  int root;
  std::int64_t bytes;
};

class Compiler {
 public:
  Compiler(const Graph& g, Dispatcher& dispatcher, const Selection& selection, PackCache* packs,
           OutputPlace place)
      : g_(g), dispatcher_(dispatcher), selection_(selection), packs_(packs), place_(place) {}

  CompiledGraph compile() && {
    locate_values();
    assign_bases();
    for (const Node& n : g_.nodes()) plan_node(n);
    place_in_arena();
    return std::move(out_);
  }

 private:
  void locate_values() {
    locations_.reserve(g_.values().size());
    for (int i = 0; i < static_cast<int>(g_.values().size()); ++i) locations_.push_back(locate(ValueId{i}));
  }

  Location locate(ValueId id) const {
    std::int64_t bytes = 0;
    for (; g_.value(id).base.valid(); id = g_.value(id).base) {
      const DTypeInfo& type = dtype_info(g_.value(id).tensor.dtype);
      bytes += g_.value(id).offset / type.block_elems * type.block_bytes;
    }
    return {id.index, bytes};
  }

  // Inputs and outputs get bases of their own; what is left of the results goes to the arena, base 0.
  void assign_bases() {
    base_of_root_.assign(g_.values().size(), 0);
    out_.base_offsets = {0};
    for (std::size_t i = 0; i < g_.values().size(); ++i)
      if (g_.values()[i].kind == ValueKind::constant) base_of_root_[i] = kConstant;
    for (const auto& [name, v] : g_.inputs()) {
      base_of_root_[v.index] = new_base();
      out_.inputs.push_back({name, g_.value(v).tensor, base_of_root_[v.index], 0, true});
    }
    for (const auto& [name, v] : g_.outputs()) {
      const Location l = locations_[v.index];
      std::int32_t& base = base_of_root_[l.root];
      if (base == 0) base = new_base();
      const Value& value = g_.value(v);
      const Value& root = g_.values()[l.root];
      const bool whole = root.kind == ValueKind::result && l.bytes == 0 &&
                         value.tensor.numel() == root.tensor.numel() &&
                         (v.index == l.root || value.tensor.is_contiguous());
      External e{name, value.tensor, base, l.bytes, whole};
      e.layout.data = base == kConstant ? address(v) : nullptr;
      out_.outputs.push_back(std::move(e));
    }
    blocks_of_root_.assign(g_.values().size(), -1);
  }

  std::int32_t new_base() {
    out_.base_offsets.push_back(-1);
    return static_cast<std::int32_t>(out_.base_offsets.size()) - 1;
  }

  // Of a constant, or of an input made with given memory.
  void* address(ValueId v) const {
    const Location l = locations_[v.index];
    void* data = g_.values()[l.root].tensor.data;
    return data ? static_cast<std::byte*>(data) + l.bytes : nullptr;
  }

  void plan_node(const Node& n) {
    const int index = static_cast<int>(out_.steps.size());
    CompiledStep step;
    step.params = n.params;
    step.label = n.label;
    bool weights_constant = true;
    const auto slots = op_slots(n.op());
    const auto bind = [&](int slot, ValueId v) {
      TensorView& t = slots[slot].in(step.params.data());
      t = g_.value(v).tensor;
      t.data = address(v);
      const Location l = locations_[v.index];
      const std::int32_t base = base_of_root_[l.root];
      if (base == kConstant) return check_memory(op_name(n.op()), slots[slot].name.data(), t);
      // What an input lies in now may be replaced by binding another; the operands of a call that is being planned
      // are those that it runs with.
      const bool is_final = place_ == OutputPlace::caller && t.data != nullptr;
      if (slots[slot].is_weight && !is_final) weights_constant = false;
      step.operands.push_back({slots[slot].field, base, l.bytes});
      touch(l.root, index);
    };
    for (auto [slot, v] : n.outputs) bind(slot, v);
    for (auto [slot, v] : n.inputs)
      if (slots[slot].role == Role::in) bind(slot, v);
    try {
      step.plan =
          dispatcher_.plan(n.op(), step.params.data(), selection_, weights_constant ? packs_ : nullptr);
    } catch (const Error& e) {
      if (n.label.empty()) throw;
      throw Error(e.code(), fmt::format("{}: {}", n.label, e.what()), e.context());
    }
    out_.launches += step.plan->launches();
    if (step.plan->workspace_bytes() > 0) {
      workspace_blocks_.emplace_back(index, static_cast<int>(blocks_.size()));
      blocks_.push_back({step.plan->workspace_bytes(), index, index});
    }
    out_.steps.push_back(std::move(step));
  }

  // A result lives from the step that writes it to the last that reads it, itself or through a view.
  void touch(int root, int step) {
    const Value& v = g_.values()[root];
    if (v.kind != ValueKind::result || (base_of_root_[root] != 0 && place_ == OutputPlace::caller)) return;
    int& block = blocks_of_root_[root];
    if (block < 0) {
      block = static_cast<int>(blocks_.size());
      blocks_.push_back({v.tensor.nbytes(), step, step});
    }
    blocks_[block].last = step;
  }

  void place_in_arena() {
    const int last_step = static_cast<int>(out_.steps.size());
    for (std::size_t root = 0; root < blocks_of_root_.size(); ++root)
      if (blocks_of_root_[root] >= 0 && base_of_root_[root] != 0)
        blocks_[blocks_of_root_[root]].last = last_step;
    const MemoryPlan plan = plan_memory(blocks_);
    out_.arena_bytes = plan.arena_bytes;
    for (auto [step, block] : workspace_blocks_) out_.steps[step].workspace = plan.offsets[block];

    std::vector<std::int64_t> offset_of_root(blocks_of_root_.size(), 0);
    for (std::size_t root = 0; root < blocks_of_root_.size(); ++root) {
      if (blocks_of_root_[root] < 0) continue;
      const auto offset = static_cast<std::int64_t>(plan.offsets[blocks_of_root_[root]]);
      if (base_of_root_[root] == 0)
        offset_of_root[root] = offset;
      else
        out_.base_offsets[base_of_root_[root]] = offset;
    }
    for (std::size_t i = 0; i < out_.steps.size(); ++i)
      add_arena_offsets(g_.nodes()[i], out_.steps[i], offset_of_root);
  }

  // Operands were recorded relative to their roots; those in the arena now know where their roots lie.
  void add_arena_offsets(const Node& n, CompiledStep& step,
                         const std::vector<std::int64_t>& offset_of_root) const {
    const auto slots = op_slots(n.op());
    const auto shift = [&](int slot, ValueId v) {
      for (OperandAddress& o : step.operands)
        if (o.field == slots[slot].field && o.base == 0) o.bytes += offset_of_root[locations_[v.index].root];
    };
    for (auto [slot, v] : n.outputs) shift(slot, v);
    for (auto [slot, v] : n.inputs)
      if (slots[slot].role == Role::in) shift(slot, v);
  }

  static constexpr std::int32_t kConstant = -1;
  const Graph& g_;
  Dispatcher& dispatcher_;
  const Selection& selection_;
  PackCache* packs_;
  OutputPlace place_;
  CompiledGraph out_;
  std::vector<Location> locations_;         // by value
  std::vector<std::int32_t> base_of_root_;  // by value; kConstant for constants
  std::vector<int> blocks_of_root_;         // by value; -1: none
  std::vector<BlockLife> blocks_;
  std::vector<std::pair<int, int>> workspace_blocks_;  // (step, block)
};

}  // namespace

CompiledGraph compile(const Graph& graph, Dispatcher& dispatcher, const Selection& selection,
                      PackCache* packs, OutputPlace output_place) {
  return Compiler(graph, dispatcher, selection, packs, output_place).compile();
}

}  // namespace kf
