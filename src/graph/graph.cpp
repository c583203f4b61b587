// Building a graph: values, views, nodes with inferred outputs, and symbols put in.

#include "kf/graph.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graph/reflect.h"
#include "kf/error.h"

namespace kf {
namespace {

bool has_symbols(const TensorView& t) {
  return std::any_of(t.shape.begin(), t.shape.begin() + t.rank, [](Dim d) { return d < 0; });
}

// Contiguous strides, or zeros while the shape is symbolic.
void set_contiguous(TensorView& t) {
  t.strides = {};
  if (has_symbols(t)) return;
  t.strides =
      TensorView::contiguous(nullptr, t.dtype, std::span(t.shape.data(), static_cast<std::size_t>(t.rank)))
          .strides;
}

bool strides_unknown(const TensorView& t) {
  return t.rank > 0 &&
         std::all_of(t.strides.begin(), t.strides.begin() + t.rank, [](auto s) { return s == 0; });
}

TensorView make_layout(DType dtype, const std::vector<Dim>& shape, Device device) {
  if (shape.size() > kMaxRank)
    throw_invalid(
        fmt::format("graph: expected at most {} dimensions, got [{}]", kMaxRank, fmt::join(shape, ", ")));
  TensorView t;
  t.dtype = dtype;
  t.device = device;
  t.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape.begin());
  set_contiguous(t);
  return t;
}

// Whether two shapes have as many elements for every value of the symbols.
bool same_numel(const TensorView& a, const TensorView& b) {
  std::int64_t na = 1, nb = 1;
  std::vector<Dim> sa, sb;
  for (int i = 0; i < a.rank; ++i) a.shape[i] < 0 ? sa.push_back(a.shape[i]) : void(na *= a.shape[i]);
  for (int i = 0; i < b.rank; ++i) b.shape[i] < 0 ? sb.push_back(b.shape[i]) : void(nb *= b.shape[i]);
  std::sort(sa.begin(), sa.end());
  std::sort(sb.begin(), sb.end());
  return na == nb && sa == sb;
}

// Whether dimensions [begin, rank) lie contiguously among themselves.
bool inner_contiguous(const TensorView& t, int begin) {
  std::int64_t expected = 1;
  for (int i = t.rank - 1; i >= begin; --i) {
    if (t.shape[i] < 0 || (t.shape[i] != 1 && t.strides[i] != expected)) return false;
    expected *= t.shape[i];
  }
  return true;
}

[[noreturn]] void fail_slot(Op op, std::string_view slot, const std::string& what) {
  throw Error(ErrorCode::invalid_argument, fmt::format("{}: {}: {}", op_name(op), slot, what),
              {{"op", op_name(op)}, {"operand", std::string(slot)}});
}

}  // namespace

ValueId Node::input(std::string_view slot) const {
  const int index = find_slot(op(), slot);
  for (auto [i, v] : inputs)
    if (i == index) return v;
  return {};
}

ValueId Node::output(std::string_view slot) const {
  const int index = find_slot(op(), slot);
  for (auto [i, v] : outputs)
    if (i == index) return v;
  return {};
}

ValueId CallResult::operator[](std::string_view slot) const {
  for (const auto& [name, v] : outputs)
    if (name == slot) return v;
  throw_invalid(fmt::format("graph: the call has no output {}; optional ones are made when wanted", slot));
}

Dim Graph::symbol(const std::string& name) {
  const auto it = std::find(symbols_.begin(), symbols_.end(), name);
  const auto index = it - symbols_.begin();
  if (it == symbols_.end()) symbols_.push_back(name);
  return -1 - index;
}

ValueId Graph::add_value(Value value) {
  values_.push_back(std::move(value));
  return ValueId{static_cast<int>(values_.size()) - 1};
}

ValueId Graph::add_input(const std::string& name, const TensorView& layout) {
  for (const auto& [other, v] : inputs_)
    if (other == name) throw_invalid(fmt::format("graph: two inputs named {}", name));
  const ValueId v = add_value({name, ValueKind::input, layout, {}, 0});
  inputs_.emplace_back(name, v);
  return v;
}

ValueId Graph::input(const std::string& name, DType dtype, std::vector<Dim> shape, Device device) {
  return add_input(name, make_layout(dtype, shape, device));
}

ValueId Graph::input(const std::string& name, const TensorView& layout) { return add_input(name, layout); }

ValueId Graph::constant(const std::string& name, const TensorView& tensor) {
  if (!tensor.present() || (tensor.data == nullptr && tensor.numel() > 0))
    throw_invalid(fmt::format("graph: constant {}: expected a tensor with data", name));
  return add_value({name, ValueKind::constant, tensor, {}, 0});
}

void Graph::check_value(const char* what, ValueId v) const {
  if (v.index < 0 || v.index >= static_cast<int>(values_.size()))
    throw_invalid(fmt::format("graph: {}: expected a value of this graph", what));
}

ValueId Graph::view(ValueId base, std::vector<Dim> shape, std::vector<std::int64_t> strides,
                    std::int64_t offset) {
  check_value("view", base);
  if (strides.size() != shape.size() || offset < 0)
    throw_invalid(fmt::format("graph: view of {}: expected {} strides and an offset >= 0, got {} and {}",
                              value(base).name, shape.size(), strides.size(), offset));
  TensorView t = make_layout(value(base).tensor.dtype, shape, value(base).tensor.device);
  std::copy(strides.begin(), strides.end(), t.strides.begin());
  if (strides_unknown(t))
    throw_invalid(fmt::format("graph: view of {}: expected a stride other than 0", value(base).name));
  return add_value({value(base).name, ValueKind::view, t, base, offset});
}

ValueId Graph::reshape(ValueId base, std::vector<Dim> shape) {
  check_value("reshape", base);
  const TensorView& b = value(base).tensor;
  TensorView t = make_layout(b.dtype, shape, b.device);
  if (!same_numel(b, t))
    throw_invalid(fmt::format("graph: reshape of {}: expected as many elements as [{}], got [{}]",
                              value(base).name, fmt::join(b.shape.begin(), b.shape.begin() + b.rank, ", "),
                              fmt::join(shape, ", ")));
  const bool contiguous = strides_unknown(b) || (!has_symbols(b) && b.is_contiguous());
  if (!contiguous) {
    int kept = 0;  // leading dimensions that stay
    while (kept < b.rank && kept < t.rank && b.shape[kept] == t.shape[kept]) ++kept;
    if (!inner_contiguous(b, kept))
      throw_invalid(fmt::format("graph: reshape of {}: expected contiguous elements, got {}",
                                value(base).name, to_string(b)));
    std::int64_t stride = 1;
    for (int i = t.rank - 1; i >= kept; stride *= t.shape[i--]) t.strides[i] = stride;
    std::copy_n(b.strides.begin(), kept, t.strides.begin());
  }
  return add_value({value(base).name, ValueKind::view, t, base, 0});
}

CallResult Graph::call(AnyParams params, const Bindings& inputs, std::vector<std::string_view> want,
                       std::string label) {
  const Op op = params.op();
  const auto slots = op_slots(op);
  Node node{std::move(params), std::move(label), {}, {}};
  for (const SlotInfo& s : slots) s.in(node.params.data()) = {};

  for (auto [name, v] : inputs) {
    const int i = find_slot(op, name);
    if (i < 0 || !slots[i].reads()) fail_slot(op, name, "expected the name of an input");
    if (v.index < 0 || v.index >= static_cast<int>(values_.size()))
      fail_slot(op, name, "expected a value of this graph");
    if (node.input(name).valid()) fail_slot(op, name, "bound twice");
    TensorView& t = slots[i].in(node.params.data());
    t = value(v).tensor;
    t.data = nullptr;
    node.inputs.emplace_back(i, v);
  }
  for (const SlotInfo& s : slots)
    if (s.reads() && !s.optional && !s.in(node.params.data()).present())
      fail_slot(op, s.name, "expected an input");
  for (std::string_view w : want)
    if (const int i = find_slot(op, w); i < 0 || !slots[i].writes())
      fail_slot(op, w, "expected the name of an output");

  op_info(op).infer(node.params.data());
  for (const SlotInfo& s : slots) {
    if (s.role != Role::out || s.optional || s.in(node.params.data()).present()) continue;
    op_info(op).validate(node.params.data());  // says which operand is not as it should be
    fail_slot(op, s.name, "expected operands that it follows from");
  }

  CallResult result;
  const std::string& stem = node.label.empty() ? op_name(op) : node.label;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const SlotInfo& s = slots[i];
    if (!s.writes()) continue;
    TensorView& t = s.in(node.params.data());
    if (s.role == Role::inout) {
      if (!t.present()) continue;  // what is written in place is an output wherever it is given
    } else if (s.optional && std::find(want.begin(), want.end(), s.name) == want.end()) {
      t = {};
      continue;
    }
    Value value{fmt::format("{}.{}", stem, s.name), ValueKind::result, t, {}, 0};
    if (s.role == Role::inout) {
      value.base = node.input(s.name);
      value.tensor.data = nullptr;
    } else {
      set_contiguous(value.tensor);
    }
    const ValueId v = add_value(std::move(value));
    node.outputs.emplace_back(static_cast<int>(i), v);
    result.outputs.emplace_back(s.name, v);
  }
  nodes_.push_back(std::move(node));
  return result;
}

void Graph::output(const std::string& name, ValueId v) {
  check_value("output", v);
  for (const auto& [other, w] : outputs_)
    if (other == name) throw_invalid(fmt::format("graph: two outputs named {}", name));
  outputs_.emplace_back(name, v);
}

void Graph::output(const std::string& name, ValueId v, const TensorView& layout) {
  check_value("output", v);
  Value& value = values_[v.index];
  if (value.kind != ValueKind::result || value.base.valid())
    throw_invalid(
        fmt::format("graph: output {}: only what a node writes afresh can be given a layout", name));
  if (!layout.same_shape(value.tensor))
    throw_invalid(fmt::format("graph: output {}: expected the shape of {}, got {}", name,
                              to_string(value.tensor), to_string(layout)));
  output(name, v);
  value.tensor = layout;
  value.tensor.data = nullptr;
}

ValueId Graph::root(ValueId v) const {
  while (value(v).base.valid()) v = value(v).base;
  return v;
}

Graph Graph::with_symbols(const SymbolValues& given) const {
  if (symbols_.empty()) return *this;
  std::vector<std::int64_t> dims;
  for (const std::string& name : symbols_) {
    const auto it = given.find(name);
    if (it == given.end())
      throw_invalid(fmt::format("graph: expected a value for dimension {}, got none", name));
    if (it->second < 0)
      throw_invalid(fmt::format("graph: dimension {}: expected 0 or more, got {}", name, it->second));
    dims.push_back(it->second);
  }
  const auto known = [&](Dim d) { return d < 0 ? dims[static_cast<std::size_t>(-1 - d)] : d; };

  Graph g = *this;
  g.symbols_.clear();
  for (Value& v : g.values_) {
    for (int i = 0; i < v.tensor.rank; ++i) v.tensor.shape[i] = known(v.tensor.shape[i]);
    if (strides_unknown(v.tensor)) set_contiguous(v.tensor);
  }
  for (Node& n : g.nodes_) {
    for (const Attr& a : attrs_of(n.params))
      if (const auto* d = std::get_if<std::int64_t>(&a.value); d != nullptr && *d < 0 && is_dim_attr(a.name))
        set_attr(n.params, a.name, known(*d));
    const auto slots = op_slots(n.op());
    for (const auto& bound : {n.inputs, n.outputs}) {
      for (auto [slot, v] : bound) {
        TensorView& t = slots[slot].in(n.params.data());
        t = g.value(v).tensor;
        t.data = nullptr;
      }
    }
  }
  return g;
}

}  // namespace kf
