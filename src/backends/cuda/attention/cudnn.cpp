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

enum Id : std::int64_t { kQ = 1, kK, kV, kOut, kLse, kSeqlensQ, kSeqlensK, kQAt, kKAt, kVAt, kOutAt, kLseAt };

struct Sizes {
  std::int64_t batch, heads, kv_heads, seqlen_q, seqlen_k, head_dim, value_dim;
  bool packed;
};

Sizes sizes_of(const AttentionParams& p) {
  const bool packed = !ops::is_dense(p.tables);
  return {packed ? p.tables.cu_seqlens_q.dim(0) - 1 : p.q.dim(0),
          p.q.dim(-2),
          p.k.dim(-2),
          packed ? p.q.dim(0) : p.q.dim(1),
          packed ? p.k.dim(0) : p.k.dim(1),
          p.q.dim(-1),
          p.v.dim(-1),
          packed};
}

// [batch, heads, seqlen, dim], as cuDNN counts, over rows as they lie.
fe::graph::Tensor_attributes rows(const char* name, Id id, const TensorView& t, const Sizes& s,
                                  std::int64_t heads, std::int64_t seqlen) {
  const std::int64_t token = t.stride(s.packed ? 0 : 1), head = t.stride(-2);
  return fe::graph::Tensor_attributes()
      .set_name(name)
      .set_uid(id)
      .set_dim({s.batch, heads, seqlen, t.dim(-1)})
      .set_stride({s.packed ? seqlen * token : t.stride(0), head, token, 1});
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
  const auto table = [&](const char* name, Id id, std::int64_t entries) {
    return g->graph.tensor(fe::graph::Tensor_attributes()
                               .set_name(name)
                               .set_uid(id)
                               .set_dim({entries, 1, 1, 1})
                               .set_stride({1, 1, 1, 1})
                               .set_data_type(fe::DataType_t::INT32));
  };
  auto q = rows("q", kQ, p.q, s, s.heads, s.seqlen_q), k = rows("k", kK, p.k, s, s.kv_heads, s.seqlen_k),
       v = rows("v", kV, p.v, s, s.kv_heads, s.seqlen_k),
       out = rows("out", kOut, p.out, s, s.heads, s.seqlen_q);
  auto attributes = fe::graph::SDPA_attributes()
                        .set_name("attention")
                        .set_generate_stats(p.lse.present())
                        .set_attn_scale(static_cast<float>(ops::score_scale(p.softmax_scale, s.head_dim)));
  if (p.causal)
    attributes.set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT).set_diagonal_band_right_bound(0);
  if (s.packed) {
    attributes.set_padding_mask(true)
        .set_seq_len_q(table("seqlens_q", kSeqlensQ, s.batch))
        .set_seq_len_kv(table("seqlens_k", kSeqlensK, s.batch));
    q.set_ragged_offset(table("q_at", kQAt, s.batch + 1));
    k.set_ragged_offset(table("k_at", kKAt, s.batch + 1));
    v.set_ragged_offset(table("v_at", kVAt, s.batch + 1));
  }
  auto [o, stats] = g->graph.sdpa(g->graph.tensor(q), g->graph.tensor(k), g->graph.tensor(v), attributes);
  o->set_output(true).set_uid(kOut).set_dim(out.get_dim()).set_stride(out.get_stride());
  if (s.packed) o->set_ragged_offset(table("out_at", kOutAt, s.batch + 1));
  if (stats != nullptr) {
    // [batch, heads, seqlen_q], or [heads, tokens] of a packed batch.
    stats->set_output(true)
        .set_uid(kLse)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({s.batch, s.heads, s.seqlen_q, 1})
        .set_stride(s.packed
                        ? std::vector<std::int64_t>{s.heads * s.seqlen_q, p.lse.stride(0), p.lse.stride(1), 1}
                        : std::vector<std::int64_t>{p.lse.stride(0), p.lse.stride(1), p.lse.stride(2), 1});
    if (s.packed) stats->set_ragged_offset(table("lse_at", kLseAt, s.batch + 1));
  }
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

std::size_t table_bytes(std::int64_t batch) {
  return (static_cast<std::size_t>(batch + 1) * sizeof(std::int32_t) + 63) / 64 * 64;
}
constexpr std::size_t kTables = 7;

Support layout_fits(const AttentionParams& p) {
  if (p.tables.paged()) return Support::no("block_tables: this row takes dense and packed keys");
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
  if (p.causal && !s.packed && s.seqlen_q > s.seqlen_k)
    return Support::no(fmt::format(
        "{} causal rows for {} keys: cuDNN's attention takes no rows without a key", s.seqlen_q, s.seqlen_k));
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.out})
    for (int i = 0; i + 1 < t->rank; ++i)
      if (t->dim(i) > 1 && (t->stride(i) % 8 != 0 || t->stride(i) <= 0))
        return Support::no(
            fmt::format("stride {}: cuDNN's attention takes rows in chunks of 16 bytes", t->stride(i)));
  if (!s.packed) return Support::yes();
  for (const TensorView* t : {&p.q, &p.k, &p.v, &p.out})
    if (t->dim(0) * t->stride(0) >= std::int64_t{1} << 31)
      return Support::no("packed rows beyond 2^31 elements: this row counts them in 32 bits");
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
  std::int64_t batch = 0;
  std::size_t tables = 0;  // bytes before cuDNN's workspace
};

Support cudnn_supports(const AttentionParams& p, const PlanContext& ctx) {
  if (!library().problem.empty())
    return Support::no("cuDNN: " + library().problem + " (install nvidia-cudnn-cu13)");
  if (const Support s = layout_fits(p); !s) return s;
  const CurrentDevice current(ctx.caps.device.index);
  const std::unique_ptr<Graph> g = describe(p, ctx.caps.device.index);
  return g->problem.empty() ? Support::yes() : Support::no("cuDNN: " + g->problem);
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
  const Sizes sizes = sizes_of(p);
  s->batch = sizes.batch;
  s->tables = sizes.packed ? kTables * table_bytes(sizes.batch) : 0;
  *workspace_bytes = s->tables + static_cast<std::size_t>(bytes);
  return s;
}

void cudnn_run(const AttentionParams& p, const CudnnState& s, const RunContext& ctx) {
  const int device = p.q.device.index;
  const CurrentDevice current(device);
  if (!is_aligned(p))
    throw Error(ErrorCode::invalid_argument, "attention: cuDNN expected q, k, v and out aligned to 16 bytes");
  std::unordered_map<std::int64_t, void*> operands = {
      {kQ, p.q.data}, {kK, p.k.data}, {kV, p.v.data}, {kOut, p.out.data}};
  if (p.lse.present()) operands[kLse] = p.lse.data;
  if (s.tables > 0) {
    std::array<std::int32_t*, kTables> at;
    for (std::size_t i = 0; i < kTables; ++i)
      at[i] =
          reinterpret_cast<std::int32_t*>(static_cast<std::byte*>(ctx.workspace) + i * table_bytes(s.batch));
    const auto stride = [](const TensorView& t) { return static_cast<int>(t.stride(0)); };
    attention::fill_packed_tables(
        {p.tables.cu_seqlens_q.as<std::int32_t>(), p.tables.cu_seqlens_k.as<std::int32_t>(),
         static_cast<int>(s.batch), at[0], at[1], at[2], at[3], at[4], at[5], at[6], stride(p.q), stride(p.k),
         stride(p.v), stride(p.out)},
        p.q, ctx);
    const Id ids[kTables] = {kSeqlensQ, kSeqlensK, kQAt, kKAt, kVAt, kOutAt, kLseAt};
    for (std::size_t i = 0; i < kTables; ++i)
      if (ids[i] != kLseAt || p.lse.present()) operands[ids[i]] = at[i];
  }
  const cudnnHandle_t handle = handle_of(device);
  check_cudnn(fe::detail::set_stream(handle, static_cast<cudaStream_t>(ctx.stream)), "cudnnSetStream");
  fe::error_object e =
      s.graph->graph.execute(handle, operands, static_cast<std::byte*>(ctx.workspace) + s.tables);
  if (e.is_bad()) throw Error(ErrorCode::unavailable, "cuDNN: " + text(e));
}

}  // namespace kf::cuda
