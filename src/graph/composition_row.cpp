#include "graph/composition_row.h"

#include <cstring>
#include <set>

#include <fmt/format.h>

#include "graph/compiled_graph.h"
#include "graph/reflect.h"
#include "kf/error.h"
#include "kf/rules.h"

namespace kf {
namespace {

// What a row keeps of a call's layout. Base b of the compiled graph is the operand at fields[b] of the call's
// Params; base 0 is the workspace.
struct Composition {
  CompiledGraph compiled;
  std::vector<std::uint32_t> fields;
};

constexpr std::size_t kMaxOperands = 32;  // more than any op has

Composition compose(const Graph& graph, Op op, const PlanContext& ctx) {
  Composition c{
      compile(graph, ctx.dispatcher, Selection{.families = kVanilla, .kernel = {}, .tf32 = ctx.tf32},
              ctx.packs, OutputPlace::caller),
      {}};
  c.fields.resize(c.compiled.base_offsets.size());
  for (const auto* externals : {&c.compiled.inputs, &c.compiled.outputs})
    for (const External& e : *externals) c.fields[e.base] = op_slots(op)[find_slot(op, e.name)].field;
  return c;
}

void run(const Composition& c, const void* params, const RunContext& ctx) {
  void* bases[kMaxOperands] = {ctx.workspace};
  for (std::size_t b = 1; b < c.fields.size(); ++b)
    bases[b] = reinterpret_cast<const TensorView*>(static_cast<const std::byte*>(params) + c.fields[b])->data;
  alignas(std::max_align_t) std::byte step_params[kMaxParamsBytes];
  for (const CompiledStep& step : c.compiled.steps) {
    std::memcpy(step_params, step.params.data(), op_info(step.params.op()).params_bytes);
    step.set_addresses(step_params, bases);
    RunContext step_ctx = ctx;
    step_ctx.workspace = static_cast<std::byte*>(ctx.workspace) + step.workspace;
    step.plan->run(step_params, step_ctx);
  }
}

AnyParams copy_params(Op op, const void* params) {
  AnyParams copy(op);
  std::memcpy(copy.data(), params, op_info(op).params_bytes);
  return copy;
}

Kernel composition_kernel(const std::string& backend_name, Op op) {
  Kernel k;
  k.name = fmt::format("{}::{}_unfused", backend_name, op_name(op));
  k.op = op;
  k.families = kVanilla;
  k.condition = "its primitives one after another, from the rules read backwards";
  k.supports = [op](const void* params, const PlanContext& ctx) {
    const auto graph = unfused_composition(copy_params(op, params));
    if (!graph) return Support::no("already a primitive, or a form that no rule makes");
    try {
      compose(*graph, op, ctx);
    } catch (const Error& e) {
      return Support::no(e.what());
    }
    return Support::yes();
  };
  k.prepare = [op](const void* params, const PlanContext& ctx) {
    auto c = std::make_shared<Composition>(compose(*unfused_composition(copy_params(op, params)), op, ctx));
    Prepared r{c, c->compiled.arena_bytes, c->compiled.launches};
    for (const CompiledStep& step : c->compiled.steps) r.graph_safe = r.graph_safe && step.plan->graph_safe();
    return r;
  };
  k.run = [](const void* params, const void* state, const RunContext& ctx) {
    run(*static_cast<const Composition*>(state), params, ctx);
  };
  return k;
}

}  // namespace

std::vector<Kernel> composition_kernels(const std::string& backend_name) {
  std::vector<Kernel> kernels;
  std::set<Op> done;
  for (const Rule& rule : builtin_rules())
    if (done.insert(rule.replacement.op).second)
      kernels.push_back(composition_kernel(backend_name, rule.replacement.op));
  return kernels;
}

}  // namespace kf
