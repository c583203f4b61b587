// A weight is compressed into cuSPARSELt's own form once, by way of a dense copy, and the calls that know it as constant share it.
// Of the library's algorithms the fastest for a size is found once, by running them.

#include "backends/cuda/linear/cusparselt.h"

#include <cusparseLt.h>

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include <fmt/format.h>

#include "backends/cuda/linear/linear.h"
#include "backends/cuda/runtime.h"
#include "core/op_weights.h"
#include "core/shared_library.h"
#include "kf/dispatch.h"
#include "kf/error.h"
#include "kf/sparsify.h"

namespace kf::cuda {
namespace {

// The functions that are used, by their own names.
#define KF_CUSPARSELT_FUNCTIONS(each)                                                      \
  each(cusparseLtInit) each(cusparseLtGetErrorString) each(cusparseLtMatDescriptorDestroy) \
      each(cusparseLtDenseDescriptorInit) each(cusparseLtStructuredDescriptorInit)         \
          each(cusparseLtMatmulDescriptorInit) each(cusparseLtMatmulAlgSelectionInit)      \
              each(cusparseLtMatmulAlgSelectionDestroy) each(cusparseLtMatmulPlanInit)     \
                  each(cusparseLtMatmulPlanDestroy) each(cusparseLtMatmulGetWorkspace)     \
                      each(cusparseLtSpMMACompressedSize2) each(cusparseLtSpMMACompress2)  \
                          each(cusparseLtMatmul) each(cusparseLtMatmulSearch)              \
                              each(cusparseLtMatmulAlgGetAttribute) each(cusparseLtMatmulAlgSetAttribute)

struct Library {
#define KF_MEMBER(name) decltype(&::name) name = nullptr;
  KF_CUSPARSELT_FUNCTIONS(KF_MEMBER)
#undef KF_MEMBER
  std::string missing;  // why it cannot be used
};

Library open_library() {
  Library l;
  SharedLibrary file({fmt::format("libcusparseLt.so.{}", CUSPARSELT_VER_MAJOR)});
#define KF_FIND(name) \
  if (file.problem().empty()) file.require(l.name, #name);
  KF_CUSPARSELT_FUNCTIONS(KF_FIND)
#undef KF_FIND
  if (!file.problem().empty())
    l.missing = fmt::format("cuSPARSELt: {} (install nvidia-cusparselt-cu13)", file.problem());
  return l;
}

const Library& library() {
  static const Library l = open_library();
  return l;
}

void check_lt(cusparseStatus_t status, const char* what) {
  if (status != CUSPARSE_STATUS_SUCCESS)
    throw Error(ErrorCode::unavailable,
                fmt::format("{}: {}", what, library().cusparseLtGetErrorString(status)));
}

// One a device, for the process.
const cusparseLtHandle_t* handle_of(int device) {
  static std::array<std::unique_ptr<cusparseLtHandle_t>, kMaxDevices> handles;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto& h = handles.at(static_cast<std::size_t>(device));
  if (!h) {
    const CurrentDevice current(device);
    auto made = std::make_unique<cusparseLtHandle_t>();
    check_lt(library().cusparseLtInit(made.get()), "cusparseLtInit");
    h = std::move(made);
  }
  return h.get();
}

constexpr std::uint32_t kAlignment = 16;

// How a size is multiplied.
using Choice = std::map<cusparseLtMatmulAlgAttribute_t, int>;
constexpr cusparseLtMatmulAlgAttribute_t kChosen[] = {
    CUSPARSELT_MATMUL_ALG_CONFIG_ID, CUSPARSELT_MATMUL_SPLIT_K, CUSPARSELT_MATMUL_SPLIT_K_MODE,
    CUSPARSELT_MATMUL_SPLIT_K_BUFFERS};

// out^T [out, tokens] = weight [out, in] x^T. The library keeps the addresses of what it is given: none of it moves.
struct Product {
  const cusparseLtHandle_t* handle;
  cusparseLtMatDescriptor_t weight, x, added, out;
  cusparseLtMatmulDescriptor_t product;
  cusparseLtMatmulAlgSelection_t algorithm;
  cusparseLtMatmulPlan_t plan;
  int made = 0;

  // `choice`: as found before; null: the library's default.
  Product(const LinearParams& p, int device, const Choice* choice = nullptr) : handle(handle_of(device)) {
    const Library& lt = library();
    const std::int64_t tokens = p.x.dim(0), in = p.x.dim(1), features = p.out.dim(1);
    const cudaDataType type = p.x.dtype == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
    const auto row_stride = [](const TensorView& t) { return t.dim(0) > 1 ? t.stride(0) : t.dim(1); };
    const auto step = [&](cusparseStatus_t status, const char* what) {
      check_lt(status, what);
      ++made;
    };
    try {
      step(lt.cusparseLtStructuredDescriptorInit(handle, &weight, features, in, in, kAlignment, type,
                                                 CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT),
           "cusparseLtStructuredDescriptorInit");
      step(lt.cusparseLtDenseDescriptorInit(handle, &x, tokens, in, row_stride(p.x), kAlignment, type,
                                            CUSPARSE_ORDER_ROW),
           "cusparseLtDenseDescriptorInit");
      const TensorView& c = p.residual.present() ? p.residual : p.out;
      step(lt.cusparseLtDenseDescriptorInit(handle, &added, features, tokens, row_stride(c), kAlignment, type,
                                            CUSPARSE_ORDER_COL),
           "cusparseLtDenseDescriptorInit");
      step(lt.cusparseLtDenseDescriptorInit(handle, &out, features, tokens, row_stride(p.out), kAlignment,
                                            type, CUSPARSE_ORDER_COL),
           "cusparseLtDenseDescriptorInit");
      step(lt.cusparseLtMatmulDescriptorInit(handle, &product, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                             CUSPARSE_OPERATION_TRANSPOSE, &weight, &x, &added, &out,
                                             CUSPARSE_COMPUTE_32F),
           "cusparseLtMatmulDescriptorInit");
      step(lt.cusparseLtMatmulAlgSelectionInit(handle, &algorithm, &product, CUSPARSELT_MATMUL_ALG_DEFAULT),
           "cusparseLtMatmulAlgSelectionInit");
      if (choice != nullptr)
        for (const auto& [attribute, value] : *choice)
          check_lt(lt.cusparseLtMatmulAlgSetAttribute(handle, &algorithm, attribute, &value, sizeof value),
                   "cusparseLtMatmulAlgSetAttribute");
      step(lt.cusparseLtMatmulPlanInit(handle, &plan, &product, &algorithm), "cusparseLtMatmulPlanInit");
    } catch (...) {
      destroy();
      throw;
    }
  }
  ~Product() { destroy(); }

  // Runs the algorithms over memory of the call's size, and leaves the plan with the fastest.
  Choice search(const LinearParams& p, const void* compressed, const Dispatcher& d) {
    const Library& lt = library();
    std::size_t workspace_bytes = 0;
    check_lt(lt.cusparseLtMatmulGetWorkspace(handle, &plan, &workspace_bytes),
             "cusparseLtMatmulGetWorkspace");
    const auto rows_of = [&](const TensorView& t) {
      const std::size_t stride = t.dim(0) > 1 ? t.stride(0) : t.dim(1);
      return d.allocate(static_cast<std::size_t>(t.dim(0)) * stride * 2);
    };
    const auto x_rows = rows_of(p.x), rows = rows_of(p.out), workspace = d.allocate(workspace_bytes);
    const auto added_rows = p.residual.present() ? rows_of(p.residual) : rows;
    d.synchronize();
    const float one = 1, kept = p.residual.present() ? 1.0f : 0.0f;
    check_lt(lt.cusparseLtMatmulSearch(handle, &plan, &one, compressed, x_rows.get(), &kept, added_rows.get(),
                                       rows.get(), workspace.get(), nullptr, 0),
             "cusparseLtMatmulSearch");
    d.synchronize();
    Choice found;
    for (const cusparseLtMatmulAlgAttribute_t attribute : kChosen)
      check_lt(
          lt.cusparseLtMatmulAlgGetAttribute(handle, &algorithm, attribute, &found[attribute], sizeof(int)),
          "cusparseLtMatmulAlgGetAttribute");
    return found;
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

 private:
  void destroy() {
    const Library& lt = library();
    if (made > 6) lt.cusparseLtMatmulPlanDestroy(&plan);
    if (made > 5) lt.cusparseLtMatmulAlgSelectionDestroy(&algorithm);
    const cusparseLtMatDescriptor_t* const matrices[] = {&weight, &x, &added, &out};
    for (int i = 0; i < std::min(made, 4); ++i) lt.cusparseLtMatDescriptorDestroy(matrices[i]);
  }
};

// The weight [out, in], dense, on the device.
std::shared_ptr<void> dense_copy(const LinearParams& p, const Dispatcher& d) {
  const std::int64_t out = p.out.dim(1), in = p.x.dim(1);
  Tensor values(p.weight.dtype, {out, in / 2}), mask(DType::u8, {out, p.weight_sparsity.mask.dim(1)}),
      dense(p.weight.dtype, {out, in});
  d.copy(values.view().data, p.weight.data, values.view().nbytes(), CopyDirection::to_host);
  d.copy(mask.view().data, p.weight_sparsity.mask.data, mask.view().nbytes(), CopyDirection::to_host);
  d.synchronize();
  Sparsity sparsity = p.weight_sparsity;
  sparsity.mask = mask;
  densify(values, {}, sparsity, dense);
  std::shared_ptr<void> there = d.allocate(dense.view().nbytes());
  d.copy(there.get(), dense.view().data, dense.view().nbytes(), CopyDirection::to_device);
  d.synchronize();
  return there;
}

std::shared_ptr<void> compress(const LinearParams& p, const Product& product, const Dispatcher& d,
                               std::size_t* bytes) {
  const Library& lt = library();
  std::size_t buffer_bytes = 0;
  check_lt(lt.cusparseLtSpMMACompressedSize2(product.handle, &product.weight, bytes, &buffer_bytes),
           "cusparseLtSpMMACompressedSize2");
  const std::shared_ptr<void> dense = dense_copy(p, d), buffer = d.allocate(buffer_bytes);
  std::shared_ptr<void> compressed = d.allocate(*bytes);
  check_lt(lt.cusparseLtSpMMACompress2(product.handle, &product.weight, 1, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                       dense.get(), compressed.get(), buffer.get(), nullptr),
           "cusparseLtSpMMACompress2");
  d.synchronize();
  return compressed;
}

// What was found, by size.
struct Choices {
  using Size = std::array<std::int64_t, 9>;
  static Size size_of(const LinearParams& p, int device) {
    const auto stride = [](const TensorView& t) { return t.present() ? t.stride(0) : 0; };
    return {device,
            static_cast<std::int64_t>(p.x.dtype),
            p.x.dim(0),
            p.x.dim(1),
            p.out.dim(1),
            stride(p.x),
            stride(p.out),
            stride(p.residual),
            p.residual.present()};
  }
  const Choice* find(const Size& size) {
    const std::lock_guard lock(mutex_);
    const auto found = choices_.find(size);
    return found == choices_.end() ? nullptr : &found->second;
  }
  void keep(const Size& size, Choice choice) {
    const std::lock_guard lock(mutex_);
    choices_.emplace(size, std::move(choice));  // the first stays, where it is
  }

 private:
  std::mutex mutex_;
  std::map<Size, Choice> choices_;
};
Choices& choices() {
  static Choices& all = *new Choices;
  return all;
}

// What a recording of some stream forbids its thread is allowed: memory of its own, and waiting for it.
class WhileRecording {
 public:
  WhileRecording() {
    check(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode");
  }
  ~WhileRecording() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  WhileRecording(const WhileRecording&) = delete;
  WhileRecording& operator=(const WhileRecording&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

struct CusparseLtState {
  std::unique_ptr<Product> product;
  std::shared_ptr<void> weight;
};

namespace cusparselt {

Support supports(const LinearParams& p, const PlanContext& ctx) {
  if (!p.weight_sparsity.present()) return Support::no("a dense weight: cuSPARSELt takes 2:4 ones");
  if (p.weight_sparsity.n != 2 || p.weight_sparsity.m != 4)
    return Support::no(
        fmt::format("weight {}:{}: cuSPARSELt takes 2:4 ones", p.weight_sparsity.n, p.weight_sparsity.m));
  if (p.x.dtype == DType::f32 || p.weight.dtype != p.x.dtype)
    return Support::no(fmt::format("x {}, weight {}: this row takes f16 or bf16 throughout",
                                   dtype_name(p.x.dtype), dtype_name(p.weight.dtype)));
  if (!p.prologue.empty()) return Support::no("a prologue: cuSPARSELt's product has none");
  if (p.bias.present() || p.activation != Activation::none)
    return Support::no("a bias or an activation: this row adds a residual alone");
  if (p.residual.present() && p.residual.dtype != p.x.dtype)
    return Support::no(fmt::format("residual {}: this row takes x's dtype", dtype_name(p.residual.dtype)));
  if (p.input_quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this row multiplies x unrounded");
  if (p.x.dim(0) <= kDequantTokens)
    return Support::no(fmt::format("{} tokens: rows that decode the weight are faster up to {}", p.x.dim(0),
                                   kDequantTokens));
  for (const auto& [name, n] :
       {std::pair{"tokens", p.x.dim(0)}, {"input features", p.x.dim(1)}, {"features", p.out.dim(1)}})
    if (n % 16 != 0 || n == 0)
      return Support::no(fmt::format("{} {}: cuSPARSELt takes multiples of 16", n, name));
  for (const auto& [name, t] : {std::pair{"x", &p.x}, {"residual", &p.residual}, {"out", &p.out}})
    if (t->present() && (t->stride(0) % 8 != 0 || t->stride(0) < t->dim(1)))
      return Support::no(
          fmt::format("{}: rows {} apart: cuSPARSELt takes rows in chunks of 16 bytes", name, t->stride(0)));
  if (ctx.packs == nullptr)
    return Support::no("a weight that may change: cuSPARSELt's form of it is made once");
  if (!library().missing.empty()) return Support::no(library().missing);
  try {
    const Product product(p, ctx.caps.device.index);
    return Support::yes();
  } catch (const Error& e) {  // it does not start on this device, or does not take these sizes
    return Support::no(std::string("cuSPARSELt: ") + e.what());
  }
}

std::shared_ptr<CusparseLtState> prepare(const LinearParams& p, const PlanContext& ctx,
                                         std::size_t* workspace_bytes) {
  const CurrentDevice current(ctx.caps.device.index);
  auto s = std::make_shared<CusparseLtState>();
  const Choices::Size size = Choices::size_of(p, ctx.caps.device.index);
  const Choice* const known = choices().find(size);
  s->product = std::make_unique<Product>(p, ctx.caps.device.index, known);
  s->weight = ctx.packs->get<void>(
      {&p.weight, &p.weight_sparsity.mask}, "cusparselt",
      [&](std::size_t* bytes) { return compress(p, *s->product, ctx.dispatcher, bytes); });
  const WhileRecording allowed;
  if (known == nullptr) choices().keep(size, s->product->search(p, s->weight.get(), ctx.dispatcher));
  check_lt(library().cusparseLtMatmulGetWorkspace(s->product->handle, &s->product->plan, workspace_bytes),
           "cusparseLtMatmulGetWorkspace");
  return s;
}

void run(const LinearParams& p, const CusparseLtState& s, const RunContext& ctx) {
  for (const auto& [name, t] : {std::pair{"x", &p.x}, {"residual", &p.residual}, {"out", &p.out}})
    if (t->present() && reinterpret_cast<std::uintptr_t>(t->data) % kAlignment != 0)
      throw Error(
          ErrorCode::invalid_argument,
          fmt::format("linear: {}: cuSPARSELt expected an address that is a multiple of {}, got {}: copy "
                      "the tensor, or select the kernel cuda::linear_dequant_gemm",
                      name, kAlignment, t->data));
  const CurrentDevice current(p.x.device.index, ctx.stream);
  const float one = 1, kept = p.residual.present() ? 1.0f : 0.0f;
  auto stream = static_cast<cudaStream_t>(ctx.stream);
  check_lt(library().cusparseLtMatmul(s.product->handle, &s.product->plan, &one, s.weight.get(), p.x.data,
                                      &kept, p.residual.present() ? p.residual.data : p.out.data, p.out.data,
                                      ctx.workspace, &stream, 1),
           "cusparseLtMatmul");
}

}  // namespace cusparselt

}  // namespace kf::cuda
