// cuDNN's fused attention through NVIDIA's cudnn-frontend, whose headers turn a description into cuDNN's graph and know what
// each version takes.

#include "backends/cuda/attention/cudnn.h"

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define NV_CUDNN_FRONTEND_DISABLE_LOGGING
#include <cudnn_frontend.h>

#include <map>
#include <unordered_map>

#include <fmt/format.h>

#include "backends/cuda/runtime.h"
#include "core/shared_library.h"
#include "kf/error.h"
#include "ops/sequences.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // what the frontend finds cuDNN's functions in
}

namespace kf::cuda {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

// cuDNN, and the libraries that the frontend opens by their names: what is open already is found.
struct Library {
  SharedLibrary cudnn{{"libcudnn.so.9"}}, runtime{{fmt::format("libcudart.so.{}", CUDART_VERSION / 1000)}},
      driver{{"libcuda.so.1"}};
  std::string problem;
  Library() {
    for (const SharedLibrary* l : {&cudnn, &runtime, &driver})
      if (problem.empty() && !l->problem().empty()) problem = l->problem();
    if (problem.empty()) fe::cudnn_dlhandle = cudnn.handle();
  }
};

const Library& library() {
  static const Library& l = *new Library;
  return l;
}

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS)
    throw Error(ErrorCode::unavailable, fmt::format("{}: status {}", what, static_cast<int>(status)));
}

// One a thread and device: its stream is that of the call.
cudnnHandle_t handle_of(int device) {
  static thread_local std::map<int, cudnnHandle_t>
      handles;  // for the thread's life, and no longer than cuDNN's
  cudnnHandle_t& h = handles[device];
  if (h == nullptr) {
    const CurrentDevice current(device);
    check_cudnn(fe::detail::create_handle(&h), "cudnnCreate");
  }
  return h;
}

enum Id : std::int64_t { kQ = 1, kK, kV, kOut, kLse };

struct Sizes {
  std::int64_t batch, heads, kv_heads, seqlen_q, seqlen_k, head_dim, value_dim;
};

Sizes sizes_of(const AttentionParams& p) {
  return {p.q.dim(0), p.q.dim(2), p.k.dim(2), p.q.dim(1), p.k.dim(1), p.q.dim(3), p.v.dim(3)};
}

// [batch, seqlen, heads, dim] as it lies, in cuDNN's order: batch, heads, seqlen, dim.
fe::graph::Tensor_attributes rows(const char* name, Id id, const TensorView& t) {
  return fe::graph::Tensor_attributes()
      .set_name(name)
      .set_uid(id)
      .set_dim({t.dim(0), t.dim(2), t.dim(1), t.dim(3)})
      .set_stride({t.stride(0), t.stride(2), t.stride(1), 1});
}

std::string text(fe::error_object& e) { return e.get_message(); }

struct Graph {
  fe::graph::Graph graph;
  std::string problem;  // why cuDNN does not serve it
};

// Up to the choice of an engine; the rest is plan().
std::unique_ptr<Graph> describe(const AttentionParams& p, int device) {
  const Sizes s = sizes_of(p);
  auto g = std::make_unique<Graph>();
  g->graph.set_io_data_type(p.q.dtype == DType::f16 ? fe::DataType_t::HALF : fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const auto q = rows("q", kQ, p.q), k = rows("k", kK, p.k), v = rows("v", kV, p.v),
             out = rows("out", kOut, p.out);
  auto attributes = fe::graph::SDPA_attributes()
                        .set_name("attention")
                        .set_generate_stats(p.lse.present())
                        .set_attn_scale(static_cast<float>(ops::score_scale(p.softmax_scale, s.head_dim)));
  if (p.causal)
    attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT).set_diagonal_band_right_bound(0);
  auto [o, stats] = g->graph.sdpa(g->graph.tensor(q), g->graph.tensor(k), g->graph.tensor(v), attributes);
  o->set_output(true).set_uid(kOut).set_dim(out.get_dim()).set_stride(out.get_stride());
  if (stats != nullptr)
    stats->set_output(true)
        .set_uid(kLse)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({s.batch, s.heads, s.seqlen_q, 1})
        .set_stride({p.lse.stride(0), p.lse.stride(1), p.lse.stride(2), 1});
  const cudnnHandle_t handle = handle_of(device);
  const auto step = [&](fe::error_object e) {
    if (g->problem.empty() && e.is_bad()) g->problem = text(e);
    return g->problem.empty();
  };
  if (step(g->graph.validate()) && step(g->graph.build_operation_graph(handle)) &&
      step(g->graph.create_execution_plans({fe::HeurMode_t::A})))
    step(g->graph.check_support());
  return g;
}

Support layout_fits(const AttentionParams& p) {
  // Of a packed batch only the device knows the lengths; for a sequence without keys cuDNN 9.19 writes what is no zero.
  if (!ops::is_dense(p.tables)) return Support::no("a packed or paged batch: this row takes dense ones");
  if (p.q.dtype == DType::f32) return Support::no("q f32: cuDNN's attention takes f16 and bf16");
  for (const TensorView* t : {&p.k, &p.v})
    if (t->dtype != p.q.dtype)
      return Support::no(fmt::format("keys or values {} with q {}: cuDNN's attention takes one dtype",
                                     dtype_name(t->dtype), dtype_name(p.q.dtype)));
  if (p.sparsity.block_layout.present() || p.sparsity.keep_m != 0)
    return Support::no("sparse keys: this row attends all of them");
  if (p.alibi_slopes.present() || p.attn_mask.present() || p.sinks.present() || p.softcap != 0)
    return Support::no("slopes, masks, sinks or a soft cap: this row has none");
  if (p.window_left >= 0 || (!p.causal && p.window_right >= 0))
    return Support::no("a window: this row has causal only");
  const Sizes s = sizes_of(p);
  if (s.batch <= 0 || s.seqlen_q == 0 || s.seqlen_k == 0 || s.heads == 0)
    return Support::no("no rows, or no keys");
  for (const std::int64_t dim : {s.head_dim, s.value_dim})
    if (dim % 8 != 0 || dim == 0 || dim > 256)
      return Support::no(fmt::format("head_dim {}: cuDNN's attention takes multiples of 8 to 256", dim));
  if (p.causal && s.seqlen_q > s.seqlen_k)
    return Support::no(fmt::format(
        "{} causal rows for {} keys: cuDNN's attention takes no rows without a key", s.seqlen_q, s.seqlen_k));
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.out})
    for (int i = 0; i + 1 < t->rank; ++i)
      if (t->dim(i) > 1 && (t->stride(i) % 8 != 0 || t->stride(i) <= 0))
        return Support::no(
            fmt::format("stride {}: cuDNN's attention takes rows in chunks of 16 bytes", t->stride(i)));
  return Support::yes();
}

bool is_aligned(const AttentionParams& p) {
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.out})
    if (reinterpret_cast<std::uintptr_t>(t->data) % 16 != 0) return false;
  return true;
}

}  // namespace

struct CudnnState {
  std::unique_ptr<Graph> graph;
};

Support cudnn_supports(const AttentionParams& p, const PlanContext& ctx) {
  if (!library().problem.empty())
    return Support::no("cuDNN: " + library().problem + " (install nvidia-cudnn-cu13)");
  if (const Support s = layout_fits(p); !s) return s;
  try {
    const CurrentDevice current(ctx.caps.device.index);
    const std::unique_ptr<Graph> g = describe(p, ctx.caps.device.index);
    return g->problem.empty() ? Support::yes() : Support::no("cuDNN: " + g->problem);
  } catch (const Error& e) {
    return Support::no(std::string("cuDNN: ") + e.what());
  }
}

std::shared_ptr<CudnnState> cudnn_prepare(const AttentionParams& p, const PlanContext& ctx,
                                          std::size_t* workspace_bytes) {
  const CurrentDevice current(ctx.caps.device.index);
  auto s = std::make_shared<CudnnState>();
  s->graph = describe(p, ctx.caps.device.index);
  const auto check = [](fe::error_object e) {
    if (e.is_bad()) throw Error(ErrorCode::unavailable, "cuDNN: " + text(e));
  };
  if (!s->graph->problem.empty()) throw Error(ErrorCode::unavailable, "cuDNN: " + s->graph->problem);
  check(s->graph->graph.build_plans());
  std::int64_t bytes = 0;
  check(s->graph->graph.get_workspace_size(bytes));
  *workspace_bytes = static_cast<std::size_t>(bytes);
  return s;
}

void cudnn_run(const AttentionParams& p, const CudnnState& s, const RunContext& ctx) {
  const int device = p.q.device.index;
  const CurrentDevice current(device, ctx.stream);
  if (!is_aligned(p))
    throw Error(ErrorCode::invalid_argument, "attention: cuDNN expected q, k, v and out aligned to 16 bytes");
  std::unordered_map<std::int64_t, void*> operands = {
      {kQ, p.q.data}, {kK, p.k.data}, {kV, p.v.data}, {kOut, p.out.data}};
  if (p.lse.present()) operands[kLse] = p.lse.data;
  const cudnnHandle_t handle = handle_of(device);
  check_cudnn(fe::detail::set_stream(handle, static_cast<cudaStream_t>(ctx.stream)), "cudnnSetStream");
  fe::error_object e = s.graph->graph.execute(handle, operands, ctx.workspace);
  if (e.is_bad()) throw Error(ErrorCode::unavailable, "cuDNN: " + text(e));
}

}  // namespace kf::cuda
