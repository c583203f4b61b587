#include "graph/rewrite.h"

#include <algorithm>

namespace kf {
namespace {

bool is_elementwise(Op op) { return op == Op::binary || op == Op::activation || op == Op::gated_activation; }

}  // namespace

GraphRewriter::GraphRewriter(Graph graph) : g_(std::move(graph)) {
  const std::size_t num_values = g_.values_.size();
  defs_.resize(num_values);
  users_.resize(num_values);
  views_.resize(num_values);
  is_output_.assign(num_values, 0);
  for (std::size_t i = 0; i < num_values; ++i)
    if (const Value& v = g_.values_[i]; v.kind == ValueKind::view)
      views_[v.base.index].push_back(ValueId{static_cast<int>(i)});
  for (const auto& [name, v] : g_.outputs_) is_output_[v.index] = 1;
  for (std::size_t i = 0; i < g_.nodes_.size(); ++i) {
    order_.push_back(static_cast<int>(i));
    positions_.push_back(static_cast<int>(i));
    index_node(static_cast<int>(i));
  }
}

void GraphRewriter::index_node(int id) {
  for (auto [slot, v] : node(id).outputs) defs_[v.index] = {id, slot};
  for (auto [slot, v] : node(id).inputs) users_[v.index].push_back(id);
}

void GraphRewriter::remove_node(int id) {
  for (auto [slot, v] : node(id).inputs) std::erase(users_[v.index], id);
  positions_[id] = -1;
}

std::vector<int> GraphRewriter::nodes_of(Op op) const {
  std::vector<int> out;
  for (int id : order_)
    if (id >= 0 && node(id).op() == op) out.push_back(id);
  return out;
}

ValueId GraphRewriter::see_through(ValueId v, Op consumer) const {
  for (;;) {
    const Value& view = g_.value(v);
    if (view.kind != ValueKind::view || view.offset != 0) return v;
    const TensorView& t = view.tensor;
    const TensorView& base = g_.value(view.base).tensor;
    const bool reshape = t.numel() == base.numel() && t.is_contiguous() && base.is_contiguous();
    const bool same_rows = t.rank > 0 && base.rank > 0 && t.dim(-1) == base.dim(-1);
    if (!reshape || !(is_elementwise(consumer) || same_rows)) return v;
    v = view.base;
  }
}

ValueId GraphRewriter::view_source(ValueId v) const {
  while (g_.value(v).kind == ValueKind::view) v = g_.value(v).base;
  return v;
}

bool GraphRewriter::used_outside(ValueId v, std::span<const int> nodes) const {
  if (is_output_[v.index]) return true;
  for (int user : users_[v.index])
    if (std::find(nodes.begin(), nodes.end(), user) == nodes.end()) return true;
  return std::any_of(views_[v.index].begin(), views_[v.index].end(),
                     [&](ValueId w) { return used_outside(w, nodes); });
}

bool GraphRewriter::equivalent(ValueId a, ValueId b) const {
  if (a == b) return true;
  const Value &va = g_.value(a), &vb = g_.value(b);
  return va.kind == ValueKind::view && vb.kind == ValueKind::view && va.base == vb.base &&
         va.offset == vb.offset && va.tensor.same_layout(vb.tensor);
}

void GraphRewriter::apply(const Match& match) {
  Node fused = match.replacement;
  const auto slots = op_slots(fused.op());
  for (auto& [slot, v] : fused.outputs) {
    const TensorView& made = slots[slot].in(fused.params.data());
    if (slots[slot].role == Role::inout || made.same_shape(g_.value(v).tensor)) continue;
    // The op writes the same elements in another shape: what was the result becomes a view of the new one.
    const ValueId written = g_.add_value({g_.value(v).name, ValueKind::result, made, {}, 0});
    Value& old = g_.values_[v.index];
    old.kind = ValueKind::view;
    old.base = written;
    defs_[v.index] = {};
    defs_.emplace_back();
    users_.emplace_back();
    views_.push_back({v});
    is_output_.push_back(0);
    v = written;
  }

  int first = static_cast<int>(order_.size());
  for (int id : match.nodes) first = std::min(first, position(id));
  for (int id : match.nodes) {
    order_[position(id)] = -1;
    remove_node(id);
  }
  const int id = static_cast<int>(g_.nodes_.size());
  g_.nodes_.push_back(std::move(fused));
  positions_.push_back(-1);
  int at = first;
  const auto place = [&](int n) {
    order_[at] = n;
    positions_[n] = at++;
  };
  for (int n : match.before) order_[position(n)] = -1;
  for (int n : match.after) order_[position(n)] = -1;
  for (int n : match.before) place(n);
  place(id);
  for (int n : match.after) place(n);
  index_node(id);
}

Graph GraphRewriter::take() {
  std::vector<Node> nodes;
  for (int id : order_)
    if (id >= 0) nodes.push_back(std::move(g_.nodes_[id]));
  g_.nodes_ = std::move(nodes);
  return std::move(g_);
}

}  // namespace kf
