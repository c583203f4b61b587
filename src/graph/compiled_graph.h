// A graph whose kernels are chosen and whose intermediates are placed: immutable, free of any address but
// those of constants, so that it may run over any arena and operands, in several threads at once. An
// Executable owns an arena for it; the row of an unfused composition runs it over the workspace of its call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kf/dispatch.h"
#include "kf/graph.h"

namespace kf {

// An operand of a step lies at bases[base] + bytes.
struct OperandAddress {
  std::uint32_t field;  // of the TensorView in the Params struct
  std::int32_t base;
  std::int64_t bytes;
};

struct CompiledStep {
  std::shared_ptr<const Plan> plan;
  AnyParams params;  // of the planned layout; constants have their addresses
  std::vector<OperandAddress> operands;
  std::size_t workspace = 0;  // offset in the arena
  std::string label;

  // Puts addresses into `target`, a copy of `params` (or `params` itself).
  void set_addresses(void* target, void* const* bases) const {
    for (const OperandAddress& o : operands) {
      auto* tensor = reinterpret_cast<TensorView*>(static_cast<std::byte*>(target) + o.field);
      auto* base = static_cast<std::byte*>(bases[o.base]);
      tensor->data = base ? base + o.bytes : nullptr;  // null: not bound yet, or nothing there
    }
  }
};

// An input or output by name.
struct External {
  std::string name;
  TensorView layout;
  std::int32_t base = 0;   // -1: a constant, whose address is in `layout`
  std::int64_t bytes = 0;  // from the base's address
  bool is_whole = true;    // all of the base's memory, in order: may be bound
};

// Base 0 is the arena. Every input has a base of its own, and so has what the graph's outputs lie in.
struct CompiledGraph {
  std::vector<CompiledStep> steps;
  std::vector<External> inputs, outputs;
  std::vector<std::int64_t>
      base_offsets;  // where in the arena an output's base lies unless bound; -1: not there
  std::size_t arena_bytes = 0;
  int launches = 0;
};

enum class OutputPlace : std::uint8_t {
  arena,  // room is kept, so that binding is optional
  caller  // the graph is a call being planned: operands are the caller's, and weights that it has now are those it runs with
};

CompiledGraph compile(const Graph& graph, Dispatcher& dispatcher, const Selection& selection,
                      PackCache* packs, OutputPlace output_place);

}  // namespace kf
