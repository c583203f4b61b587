// The op graph: typed ops over values whose dimensions may be symbolic (a number of tokens, a batch size).
// In SSA form: a node that writes in place (a cache append) makes a new value that aliases the old one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kf/dispatch.h"
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
  ValueId add_value(Value value);
  ValueId add_input(const std::string& name, const TensorView& layout);

  std::vector<std::string> symbols_;
  std::vector<Value> values_;
  std::vector<Node> nodes_;
  std::vector<std::pair<std::string, ValueId>> inputs_, outputs_;
};

// ---------------------------------------------------------------------------------------------------------------
// Rules: what may become one op. Data, so that they can be listed, switched off, measured, and read
// backwards: the pattern is also the unfused composition of the op that replaces it.

using NamePairs = std::vector<std::pair<std::string, std::string>>;

// An attribute that repeats a dimension of an operand: checked going forward, filled in going backward.
struct DimAttr {
  std::string attr;   // "seqlen_k"
  std::string value;  // the pattern value, "k"
  int dim = 0;
  std::vector<std::string> unless;  // without meaning where one of these pattern values is bound
};

struct PatternNode {
  std::string name;  // "h": how attributes refer to it
  Op op;
  // slot -> pattern value. A value not produced by a pattern node is an operand of the whole. A trailing '?'
  // on the slot: bound when the node has it, absent when not. Slots not listed must be absent.
  NamePairs inputs;
  NamePairs outputs;
  // attribute -> required value ("kind" -> "mul"), or values ("silu|relu"). An attribute that is neither
  // required nor taken over by the replacement must have its default value.
  NamePairs require = {};
  std::vector<DimAttr> dims = {};
};

struct Replacement {
  Op op;
  NamePairs inputs;   // slot -> pattern value; '?' as in a pattern
  NamePairs outputs;  // slot -> pattern value; an optional slot is left out where nobody else uses the value
  // attribute -> "node.attribute"; the same attribute from several nodes: they must agree
  NamePairs attrs = {};
  NamePairs constant_attrs = {};  // attribute -> value
};

struct Rule {
  std::string name;  // "residual_rms_norm"
  std::string flag;  // the KernelFusionConfig switch that governs it: "fuse_rmsnorm"
  std::string summary;
  // In dependence order, one node that all others feed or share an operand with last. Values used outside
  // must be outputs of the replacement.
  std::vector<PatternNode> pattern;
  Replacement replacement;
  // Beyond the pattern: given the params of the replacement (shapes, attributes; no data), may it be applied?
  Support (*condition)(const AnyParams& replacement) = nullptr;
};

const std::vector<Rule>& builtin_rules();  // in the order of application

// Which rules apply.
struct FusionPolicy {
  enum class Mode : std::uint8_t { none, all, measured };
  Mode mode = Mode::measured;
  std::vector<std::string> only;    // non-empty: just these rules
  std::vector<std::string> except;  // never these
};

// A fusion that was tried: both forms timed, their results compared.
struct Verdict {
  std::string rule, signature, device;  // the key, together with
  std::string version;                  // the library's and of its sources: other kernels are measured anew
  bool keep = false;
  double unfused_ms = 0, fused_ms = 0;
  double unfused_bytes = 0, fused_bytes = 0;  // peak memory of intermediates
  double max_error = 0;                       // largest |fused - unfused| over the largest |unfused|
  std::string reason;
};

// Verdicts on disk (JSON, replaced atomically; a corrupt file is set aside and said so; one that may not be read is
// left alone and said so). Several processes may share the file.
class VerdictStore {
 public:
  explicit VerdictStore(std::string path = {});  // empty: memory only
  static std::string default_path();             // $KF_CACHE_DIR or $XDG_CACHE_HOME/kf or ~/.cache/kf
  std::optional<Verdict> find(const std::string& rule, const std::string& signature,
                              const std::string& device) const;
  void put(const Verdict& verdict);  // overrules an older one of the same key
  std::vector<Verdict> list() const;
  void clear();
  // Adds what was put since the last save to what the file has by then, from whichever process. Throws
  // resource_exhausted when it cannot be read or written; the old file stays.
  void save();

 private:
  std::string path_;
  mutable std::mutex mutex_;
  std::map<std::string, Verdict> verdicts_;
  std::set<std::string> unsaved_;  // keys that were put
  bool cleared_ = false;           // since the last save: what the file has goes
};

struct Applied {  // what rewriting did, for explain
  std::string rule, label;
  bool kept = false;
  std::string reason;
};

// A rewritten copy for these symbol values, which it no longer has as symbols. A rule is applied only where a
// fused kernel serves its replacement. Measures where the policy says so and the store does not know.
Graph fuse(const Graph& graph, const SymbolValues& symbols, const FusionPolicy& policy,
           Dispatcher& dispatcher, VerdictStore* store = nullptr, std::vector<Applied>* applied = nullptr);

// One drawing of two forms of a graph, side by side.
std::string before_after_svg(const Graph& before, const Graph& after);

// The unfused composition of an op as a graph of primitive ops, from the rules read backwards, recursively;
// operands are inputs and outputs named after the op's slots. nullopt: a primitive, or a form that no rule
// makes.
std::optional<Graph> unfused_composition(const AnyParams& params);

// ---------------------------------------------------------------------------------------------------------------
// A graph planned for fixed symbol values: every kernel chosen, every intermediate placed by liveness in one
// arena.
class Executable {
 public:
  struct Options {
    Selection selection;
    PackCache* packs = nullptr;  // non-null: constants are packed there; must outlive the executable
    bool telemetry = true;       // off: the dispatcher's sink is not told of the steps
  };
  Executable(const Graph& graph, const SymbolValues& symbols, Dispatcher& dispatcher, const Options& options);
  ~Executable();
  Executable(Executable&&) noexcept;

  // Binds an input's or output's memory; the layout must be the planned one. Outputs not bound stay in the
  // arena.
  void bind(std::string_view name, const TensorView& tensor);
  // Where an output lies (after run, until the next).
  TensorView output(std::string_view name) const;
  // Validates host tables once, then runs every step; on a device it returns once they are enqueued.
  void run(const Launch& launch = {});
  std::size_t peak_activation_bytes() const;  // the arena: intermediates and workspaces
  int launches() const;                       // kernels a run
  std::string to_text() const;                // each step: op, kernel, shapes

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kf
