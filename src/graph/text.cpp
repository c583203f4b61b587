// A graph as text: one node a line.

#include <iterator>

#include <fmt/format.h>

#include "graph/reflect.h"
#include "kf/graph.h"

namespace kf {
namespace {

class Printer {
 public:
  explicit Printer(const Graph& g) : g_(g) {}

  std::string print() {
    for (const auto& [name, v] : g_.inputs()) line("input {}: {}", name, type(v));
    for (const Node& n : g_.nodes()) print_node(n);
    for (const auto& [name, v] : g_.outputs()) line("output {} = {}", name, ref(v));
    return std::move(text_);
  }

 private:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  void print_node(const Node& n) {
    const auto slots = op_slots(n.op());
    std::string outputs, operands, types;
    for (auto [slot, v] : n.outputs) {
      outputs += (outputs.empty() ? "" : ", ") + ref(v);
      types += (types.empty() ? "" : ", ") + type(v);
    }
    for (auto [slot, v] : n.inputs)
      operands += fmt::format("{}{}={}", operands.empty() ? "" : ", ", slots[slot].name, ref(v));
    line("{} = {}({}){} : {}{}", outputs, op_name(n.op()), operands, attributes(n), types,
         n.label.empty() ? "" : "  # " + n.label);
  }

  // Those that differ from their defaults.
  std::string attributes(const Node& n) const {
    std::string text;
    const auto defaults = default_attrs(n.op());
    std::size_t i = 0;
    for (const Attr& a : attrs_of(n.params)) {
      if (a.value != defaults[i++].value)
        text +=
            fmt::format(" {}={}", a.name, std::visit([&](auto v) { return value_text(a.name, v); }, a.value));
    }
    return text;
  }
  static std::string value_text(std::string_view, bool v) { return v ? "true" : "false"; }
  static std::string value_text(std::string_view, float v) { return fmt::format("{:g}", v); }
  static std::string value_text(std::string_view, std::string_view v) { return std::string(v); }
  std::string value_text(std::string_view name, std::int64_t v) const {
    return is_dim_attr(name) ? dim(v) : std::to_string(v);
  }

  std::string dim(Dim d) const {
    return d < 0 ? g_.symbols()[static_cast<std::size_t>(-1 - d)] : std::to_string(d);
  }

  std::string type(ValueId v) const {
    const TensorView& t = g_.value(v).tensor;
    std::string shape;
    for (int i = 0; i < t.rank; ++i) shape += (i ? ", " : "") + dim(t.shape[i]);
    return fmt::format("{}[{}]", dtype_name(t.dtype), shape);
  }

  std::string ref(ValueId v) const {
    const Value& value = g_.value(v);
    switch (value.kind) {
      case ValueKind::input:
      case ValueKind::constant:
        return value.name;
      case ValueKind::result:
        return fmt::format("%{}", v.index);
      case ValueKind::view:
        break;
    }
    const std::string offset = value.offset ? fmt::format(" + {}", value.offset) : "";
    return fmt::format("view({}{}: {})", ref(value.base), offset, type(v));
  }

  const Graph& g_;
  std::string text_;
};

}  // namespace

std::string Graph::to_text() const { return Printer(*this).print(); }

}  // namespace kf
