// A graph while rules are applied to it: who makes a value, who uses it, and the order of the nodes.
#pragma once

#include <span>
#include <vector>

#include "graph/pattern.h"
#include "kf/graph.h"

namespace kf {

// A pattern found, and the node that may take its place.
struct Match {
  const Pattern* pattern = nullptr;
  std::vector<int> nodes;       // one a pattern step
  std::vector<ValueId> values;  // one a pattern value; invalid: an optional one, absent
  Node replacement;             // outputs are the values that it takes over
  std::vector<int> before,
      after;  // nodes between the matched ones, by the side of the replacement that they go to
};

class GraphRewriter {
 public:
  struct Def {
    int node = -1, slot = -1;  // node -1: not a node's result
  };

  explicit GraphRewriter(Graph graph);  // without symbolic dimensions

  const Graph& graph() const { return g_; }
  const Node& node(int id) const { return g_.nodes_[id]; }
  bool alive(int id) const { return positions_[id] >= 0; }
  int position(int id) const { return positions_[id]; }
  int node_at(int position) const { return order_[position]; }  // -1: none any more
  std::vector<int> nodes_of(Op op) const;                       // alive, in order
  Def def(ValueId v) const { return defs_[v.index]; }
  std::span<const int> users(ValueId v) const { return users_[v.index]; }
  // `v`, or what it is a reshape of, as far as `consumer` does not mind: an elementwise op takes any shape,
  // other ops work along the last dimension, which must stay.
  ValueId see_through(ValueId v, Op consumer) const;
  // The result or input that a chain of views starts from.
  ValueId view_source(ValueId v) const;
  // Whether anything but these nodes reads `v` or a view of it.
  bool used_outside(ValueId v, std::span<const int> nodes) const;
  // Whether the two are the same elements in the same shape.
  bool equivalent(ValueId a, ValueId b) const;

  void apply(const Match& match);
  // The rewritten graph; nothing may follow.
  Graph take();

 private:
  void index_node(int id);
  void remove_node(int id);

  Graph g_;
  std::vector<int> order_;                   // node by position
  std::vector<int> positions_;               // by node; -1: replaced
  std::vector<Def> defs_;                    // by value
  std::vector<std::vector<int>> users_;      // by value: nodes
  std::vector<std::vector<ValueId>> views_;  // by value: its views
  std::vector<char> is_output_;              // by value
};

}  // namespace kf
