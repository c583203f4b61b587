// The linear layer on oneDNN's matmul: what an eager framework runs on a CPU. Constant weights are reordered
// once to the layout that the library asks for.
#include <memory>
#include <string>

#include <fmt/format.h>
#include <omp.h>
#include <dnnl.hpp>

#include "backends/cpu/linear/kernels.h"
#include "backends/cpu/linear/weights.h"
#include "kf/ops/linear.h"

namespace kf::cpu {

using dnnl::matmul;
using dnnl::memory;

struct MatmulState {
  memory::desc x, weight, bias, out, scratchpad;
  matmul primitive;
  std::shared_ptr<void> packed;  // the weight in the layout of `weight`; null: the caller's own
};

namespace {

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// oneDNN takes as many threads as OpenMP would give the calling thread, when a primitive is made and when it
// runs.
class ScopedThreads {
 public:
  explicit ScopedThreads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~ScopedThreads() { omp_set_num_threads(before_); }
  ScopedThreads(const ScopedThreads&) = delete;
  ScopedThreads& operator=(const ScopedThreads&) = delete;

 private:
  int before_;
};

memory::data_type data_type(DType dtype) {
  return dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// A matrix as it lies. The stride of a dimension of one is free with us, but not with oneDNN.
memory::desc matrix(const TensorView& t, int rows, int cols) {
  const std::int64_t col_stride = t.dim(cols) == 1 && t.dim(rows) > 1 ? 1 : t.stride(cols);
  const std::int64_t row_stride = t.dim(rows) == 1 ? std::max<std::int64_t>(1, t.dim(cols)) : t.stride(rows);
  return {{t.dim(rows), t.dim(cols)}, data_type(t.dtype), {row_stride, col_stride}};
}

memory::desc weight_matrix(const TensorView& weight) { return matrix(weight, 1, 0); }

// Empty where oneDNN has no implementation.
matmul::primitive_desc describe(const LinearParams& p, bool packed) {
  const memory::desc weight = packed ? memory::desc({p.weight.dim(1), p.weight.dim(0)},
                                                    data_type(p.weight.dtype), memory::format_tag::any)
                                     : weight_matrix(p.weight);
  const memory::desc x = matrix(p.x, 0, 1), out = matrix(p.out, 0, 1);
  const matmul::desc desc =
      p.bias.present()
          ? matmul::desc(x, weight, {{1, p.bias.dim(0)}, data_type(p.bias.dtype), memory::format_tag::ab},
                         out)
          : matmul::desc(x, weight, out);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {desc, attr, cpu_engine(), /*allow_empty=*/true};
}

bool is_empty(const LinearParams& p) { return p.out.numel() == 0; }

bool is_library_dtype(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; }

// The weight in layout `to`. Layouts depend on the number of tokens, too: the pack is named by all that says
// one.
std::shared_ptr<void> pack_weight(const TensorView& weight, const memory::desc& to, const PlanContext& ctx) {
  const std::string layout(reinterpret_cast<const char*>(&to.data), sizeof to.data);
  return ctx.packs->get<void>({&weight}, "onednn" + layout, [&](std::size_t* bytes) {
    *bytes = to.get_size();
    std::shared_ptr<void> packed = allocate_host(*bytes);
    memory source(weight_matrix(weight), cpu_engine(), weight.data), target(to, cpu_engine(), packed.get());
    dnnl::stream stream(cpu_engine());
    dnnl::reorder(source, target).execute(stream, source, target);
    stream.wait();
    return packed;
  });
}

}  // namespace

Support onednn::supports(const LinearParams& p, const PlanContext& ctx) {
  if (const Support s = full_precision(p, ctx); !s) return s;
  if (!p.prologue.empty()) return Support::no("a prologue: oneDNN's matmul has none");
  if (p.activation != Activation::none)
    return Support::no("an activation: this row is the unfused linear layer");
  if (p.residual.present()) return Support::no("a residual: this row is the unfused linear layer");
  if (p.lora.present()) return Support::no("an adapter: this row is the unfused linear layer");
  if (p.weight_sparsity.present()) return Support::no("a sparse weight: oneDNN takes dense ones");
  for (const TensorView* t : {&p.x, &p.weight})
    if (!is_library_dtype(t->dtype) || t->dtype != p.x.dtype)
      return Support::no(fmt::format("{} by {}: oneDNN takes f32 or bf16 throughout", dtype_name(p.x.dtype),
                                     dtype_name(p.weight.dtype)));
  if (p.bias.present() && !is_library_dtype(p.bias.dtype))
    return Support::no(fmt::format("bias {}: oneDNN takes f32 or bf16", dtype_name(p.bias.dtype)));
  if (p.x.dim(1) == 0) return Support::no("no input features: oneDNN takes at least one");
  if (is_empty(p)) return Support::yes();
  for (const TensorView* t : {&p.x, &p.out})
    if (t->dim(0) > 1 && t->stride(0) < t->dim(1))
      return Support::no(fmt::format("rows {} apart and {} long: oneDNN takes rows that do not overlap",
                                     t->stride(0), t->dim(1)));
  const std::int64_t row = p.weight.stride(0), col = p.weight.stride(1);
  if (!(col == 1 && row >= p.weight.dim(1)) && !(row == 1 && col >= p.weight.dim(0)))
    return Support::no(fmt::format("weight strides {}, {}: oneDNN takes dense rows or columns", row, col));
  const ScopedThreads threads(ctx.num_threads);
  try {
    if (!describe(p, ctx.packs != nullptr))
      return Support::no(fmt::format("oneDNN has no {} matmul for this processor", dtype_name(p.x.dtype)));
  } catch (const dnnl::error& e) {
    return Support::no(fmt::format("oneDNN: {}", e.what()));
  }
  return Support::yes();
}

std::shared_ptr<MatmulState> onednn::prepare(const LinearParams& p, const PlanContext& ctx,
                                             std::size_t* workspace_bytes) {
  auto s = std::make_shared<MatmulState>();
  if (is_empty(p)) return s;
  const ScopedThreads threads(ctx.num_threads);
  const matmul::primitive_desc pd = describe(p, ctx.packs != nullptr);
  s->x = pd.src_desc();
  s->weight = pd.weights_desc();
  s->bias = pd.bias_desc();
  s->out = pd.dst_desc();
  s->scratchpad = pd.scratchpad_desc();
  s->primitive = matmul(pd);
  if (ctx.packs != nullptr && s->weight != weight_matrix(p.weight))
    s->packed = pack_weight(p.weight, s->weight, ctx);
  *workspace_bytes = s->scratchpad.get_size();
  return s;
}

void onednn::run(const LinearParams& p, const MatmulState& s, const RunContext& ctx) {
  if (is_empty(p)) return;
  const ScopedThreads threads(ctx.num_threads);
  const dnnl::engine& engine = cpu_engine();
  dnnl::stream stream(engine);
  void* const weight = s.packed ? s.packed.get() : p.weight.data;
  std::unordered_map<int, memory> args = {{DNNL_ARG_SRC, {s.x, engine, p.x.data}},
                                          {DNNL_ARG_WEIGHTS, {s.weight, engine, weight}},
                                          {DNNL_ARG_DST, {s.out, engine, p.out.data}},
                                          {DNNL_ARG_SCRATCHPAD, {s.scratchpad, engine, ctx.workspace}}};
  if (p.bias.present()) args.insert({DNNL_ARG_BIAS, {s.bias, engine, p.bias.data}});
  s.primitive.execute(stream, args);
  stream.wait();
}

}  // namespace kf::cpu
