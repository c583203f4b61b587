// The op graph: typed ops over values whose dimensions may be symbolic (a number of tokens, a batch size).
// In SSA form: a node that writes in place (a cache append) makes a new value that aliases the old one.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kf/op.h"

namespace kf {

// A symbolic dimension is a negative number, an index into Graph::symbols().
using Dim = std::int64_t;
// Values of the symbolic dimensions.
using SymbolValues = std::map<std::string, std::int64_t>;

struct ValueId {
  int index = -1;
  bool valid() const { return index >= 0; }
  bool operator==(const ValueId&) const = default;
};

enum class ValueKind : std::uint8_t {
  input,     // given at every run
  constant,  // a weight: bound once, for the graph's life
  result,    // written by a node
  view,      // other elements of another value
};

struct Value {
  std::string name;
  ValueKind kind{};
  // dtype, shape (possibly symbolic), strides in elements (all 0: contiguous once the shape is known); data
  // only for a constant, or an input of given memory
  TensorView tensor;
  ValueId base;             // view: of what;  result of an inout slot: what it aliases
  std::int64_t offset = 0;  // view: elements from the base's first
};

using Bindings = std::vector<std::pair<std::string_view, ValueId>>;  // slot name -> value

struct Node {
  AnyParams params;   // attributes; tensors carry dtype and (possibly symbolic) shape, no data
  std::string label;  // "layers.3.ffn"
  std::vector<std::pair<int, ValueId>> inputs;   // (slot index, value), in and inout slots
  std::vector<std::pair<int, ValueId>> outputs;  // (slot index, value), out and inout slots
  Op op() const { return params.op(); }
  ValueId input(std::string_view slot) const;  // invalid: not bound
  ValueId output(std::string_view slot) const;
};

// What call() made: outputs by slot name.
class CallResult {
 public:
  std::vector<std::pair<std::string, ValueId>> outputs;
  ValueId operator[](std::string_view slot) const;
  ValueId out() const { return outputs.front().second; }  // the first output slot
};

class Graph {
 public:
  Dim symbol(const std::string& name);  // the dimension of that name, made on first use
  const std::vector<std::string>& symbols() const { return symbols_; }

  ValueId input(const std::string& name, DType dtype, std::vector<Dim> shape, Device device = {});
  // An input of exactly this layout, strides too. Its memory is bound at a run.
  ValueId input(const std::string& name, const TensorView& layout);
  ValueId constant(const std::string& name, const TensorView& tensor);
  // Other elements of `base`: `offset` and `strides` in elements; strides may not be symbolic.
  ValueId view(ValueId base, std::vector<Dim> shape, std::vector<std::int64_t> strides,
               std::int64_t offset = 0);
  // [..., a * b] as [..., a, b] and back, where the dimensions that change are contiguous.
  ValueId reshape(ValueId base, std::vector<Dim> shape);

  // Appends a node. Its required outputs are made, and of the optional ones those that `want` names.
  CallResult call(AnyParams params, const Bindings& inputs, std::vector<std::string_view> want = {},
                  std::string label = {});
  void output(const std::string& name, ValueId value);
  // An output that its node writes with these strides and this dtype.
  void output(const std::string& name, ValueId value, const TensorView& layout);

  const std::vector<Value>& values() const { return values_; }
  const std::vector<Node>& nodes() const { return nodes_; }  // in an order that respects dependences
  const std::vector<std::pair<std::string, ValueId>>& inputs() const { return inputs_; }
  const std::vector<std::pair<std::string, ValueId>>& outputs() const { return outputs_; }
  const Value& value(ValueId v) const { return values_[v.index]; }
  // The value whose memory `v` lies in: itself, or what it is a view or in-place version of.
  ValueId root(ValueId v) const;
  // A copy without symbolic dimensions. Throws invalid_argument naming a symbol that has no value.
  Graph with_symbols(const SymbolValues& symbols) const;

  std::string to_text() const;  // one node a line
  std::string to_svg() const;

 private:
  friend class GraphRewriter;
  void check_value(const char* what, ValueId v) const;
  ValueId add_value(Value value);
  ValueId add_input(const std::string& name, const TensorView& layout);

  std::vector<std::string> symbols_;
  std::vector<Value> values_;
  std::vector<Node> nodes_;
  std::vector<std::pair<std::string, ValueId>> inputs_, outputs_;
};

// One drawing of two forms of a graph, side by side.
std::string before_after_svg(const Graph& before, const Graph& after);

}  // namespace kf
