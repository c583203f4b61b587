// cuBLASLt is opened at run time, so that the library loads on a machine that has none.

#include <cublasLt.h>

#include <array>
#include <memory>
#include <mutex>

#include <fmt/format.h>

#include "backends/cuda/linear/linear.h"
#include "backends/cuda/runtime.h"
#include "backends/cuda/supports.h"
#include "core/shared_library.h"
#include "kf/error.h"

namespace kf::cuda {
namespace {

// The functions that are used, by their own names.
#define KF_CUBLASLT_FUNCTIONS(each)                                                                        \
  each(cublasLtCreate) each(cublasLtMatmul) each(cublasLtMatmulDescCreate) each(cublasLtMatmulDescDestroy) \
      each(cublasLtMatmulDescSetAttribute) each(cublasLtMatrixLayoutCreate)                                \
          each(cublasLtMatrixLayoutDestroy) each(cublasLtMatmulPreferenceCreate)                           \
              each(cublasLtMatmulPreferenceDestroy) each(cublasLtMatmulPreferenceSetAttribute)             \
                  each(cublasLtMatmulAlgoGetHeuristic) each(cublasLtMatmulAlgoConfigGetAttribute)

struct Library {
#define KF_MEMBER(name) decltype(&::name) name = nullptr;
  KF_CUBLASLT_FUNCTIONS(KF_MEMBER)
#undef KF_MEMBER
  std::string missing;  // why it cannot be used
};

Library open_library() {
  Library l;
  const SharedLibrary file({fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR)});
  if (!file.problem().empty()) {
    l.missing = fmt::format("cuBLASLt: {} (install CUDA {}'s libcublas)", file.problem(), CUBLAS_VER_MAJOR);
    return l;
  }
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(file.find(symbol));
    if (function == nullptr) l.missing = fmt::format("cuBLASLt: {} has no {}", file.path(), symbol);
  };
#define KF_FIND(name) find(l.name, #name);
  KF_CUBLASLT_FUNCTIONS(KF_FIND)
#undef KF_FIND
  return l;
}

const Library& library() {
  static const Library l = open_library();
  return l;
}

void check_lt(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ErrorCode::unavailable, fmt::format("{}: status {}", what, static_cast<int>(status)));
}

// One a device, for the process.
cublasLtHandle_t handle_of(int device) {
  static std::array<cublasLtHandle_t, kMaxDevices> handles{};
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  cublasLtHandle_t& h = handles.at(static_cast<std::size_t>(device));
  if (h == nullptr) {
    const CurrentDevice current(device);
    check_lt(library().cublasLtCreate(&h), "cublasLtCreate");
  }
  return h;
}

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::f32 ? CUDA_R_32F : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

// cuBLASLt's descriptions are what it makes: they are kept by pointer, and given back.
struct GivenBack {
  void operator()(cublasLtMatmulDescOpaque_t* d) const { library().cublasLtMatmulDescDestroy(d); }
  void operator()(cublasLtMatrixLayoutOpaque_t* l) const { library().cublasLtMatrixLayoutDestroy(l); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* p) const { library().cublasLtMatmulPreferenceDestroy(p); }
};
using ProductDescription = std::unique_ptr<cublasLtMatmulDescOpaque_t, GivenBack>;
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, GivenBack>;

}  // namespace

struct CublasLtState {
  ProductDescription product;
  bool tf32 = false;             // f32 operands may be rounded
  const void* bias = nullptr;    // that it names
  Layout weight, x, added, out;  // added: a residual, or as out
  // For operands aligned to 16 bytes, and to their elements.
  cublasLtMatmulAlgo_t aligned{}, unaligned{};
  bool has_unaligned = false;
};

namespace {

// A row-major [rows, cols] is cuBLASLt's column-major [cols, rows].
Layout layout(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
  cublasLtMatrixLayout_t l = nullptr;
  check_lt(library().cublasLtMatrixLayoutCreate(&l, data_type(dtype), static_cast<std::uint64_t>(cols),
                                                static_cast<std::uint64_t>(rows), stride),
           "cublasLtMatrixLayoutCreate");
  return Layout(l);
}

std::int64_t row_stride(const TensorView& t) {
  return t.dim(0) > 1 ? t.stride(0) : std::max<std::int64_t>(t.dim(1), 1);
}

bool has_rows(const TensorView& weight) { return weight.dim(1) <= 1 || weight.stride(1) == 1; }

// Whether an algorithm sums the whole reduction. Split into parts of depth / parts elements, rounded down and then up to a tile's
// depth, cuBLASLt 13.1 leaves out what is beyond the last part: 8 of 19208 elements in 15 parts of 1280.
bool sums_all(const cublasLtMatmulAlgo_t& algorithm, std::int64_t depth) {
  constexpr std::int64_t kLeastTileDepth = 16;  // a matrix instruction's
  std::int32_t parts = 1;
  std::size_t written = 0;
  check_lt(library().cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                                          sizeof parts, &written),
           "cublasLtMatmulAlgoConfigGetAttribute");
  return parts <= 1 || depth % parts == 0 || depth / parts % kLeastTileDepth != 0;
}

bool find_algorithm(const CublasLtState& s, std::int64_t depth, int device, std::uint32_t alignment,
                    cublasLtMatmulAlgo_t* algorithm) {
  const Library& lt = library();
  cublasLtMatmulPreference_t made = nullptr;
  check_lt(lt.cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, GivenBack> preference(made);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check_lt(lt.cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof value),
             "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  for (const auto a :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    prefer(a, alignment);
  // A split product is not to be rounded to the output's dtype before its parts and the bias are added.
  for (const std::uint32_t reductions :
       {CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_NONE}) {
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    std::array<cublasLtMatmulHeuristicResult_t, 8> results{};
    int found = 0;
    if (lt.cublasLtMatmulAlgoGetHeuristic(handle_of(device), s.product.get(), s.weight.get(), s.x.get(),
                                          s.added.get(), s.out.get(), preference.get(),
                                          static_cast<int>(results.size()), results.data(),
                                          &found) != CUBLAS_STATUS_SUCCESS)
      continue;
    for (int i = 0; i < found; ++i)
      if (results[static_cast<std::size_t>(i)].state == CUBLAS_STATUS_SUCCESS &&
          sums_all(results[static_cast<std::size_t>(i)].algo, depth)) {
        *algorithm = results[static_cast<std::size_t>(i)].algo;
        return true;
      }
  }
  return false;
}

ProductDescription product_of(const LinearParams& p, bool tf32) {
  const Library& lt = library();
  cublasLtMatmulDesc_t made = nullptr;
  const auto compute = tf32 && p.x.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check_lt(lt.cublasLtMatmulDescCreate(&made, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
  ProductDescription product(made);
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    check_lt(lt.cublasLtMatmulDescSetAttribute(product.get(), name, &value, sizeof value),
             "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, has_rows(p.weight) ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (p.bias.present()) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(p.bias.dtype));
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias.data);
  }
  return product;
}

std::shared_ptr<CublasLtState> describe(const LinearParams& p, bool tf32) {
  auto s = std::make_shared<CublasLtState>();
  s->product = product_of(p, tf32);
  s->tf32 = tf32;
  s->bias = data_or_null(p.bias);
  s->weight = has_rows(p.weight)
                  ? layout(p.weight.dtype, p.weight.dim(0), p.weight.dim(1), row_stride(p.weight))
                  : layout(p.weight.dtype, p.weight.dim(1), p.weight.dim(0), p.weight.stride(1));
  s->x = layout(p.x.dtype, p.x.dim(0), p.x.dim(1), row_stride(p.x));
  s->out = layout(p.out.dtype, p.out.dim(0), p.out.dim(1), row_stride(p.out));
  const TensorView& added = p.residual.present() ? p.residual : p.out;
  s->added = layout(added.dtype, p.out.dim(0), p.out.dim(1), row_stride(added));
  return s;
}

}  // namespace

Support cublaslt::supports(const LinearParams& p, const PlanContext& ctx) {
  if (p.residual.present()) return Support::no("a residual: this row is the unfused linear layer");
  return supports_residual(p, ctx);
}

Support cublaslt::supports_residual(const LinearParams& p, const PlanContext& ctx) {
  if (!library().missing.empty()) return Support::no(library().missing);
  if (!p.prologue.empty()) return Support::no("a prologue: cuBLASLt's product has none");
  if (p.weight_sparsity.present()) return Support::no("a sparse weight: cuBLASLt takes dense ones");
  if (p.activation != Activation::none)
    return Support::no("an activation: cuBLASLt's product has none of ours");
  if (p.input_quantization != InputQuantization::none)
    return Support::no("input_quantization int8: this row multiplies x unrounded");
  if (p.weight.dtype != p.x.dtype || (p.bias.present() && p.bias.dtype != p.x.dtype) ||
      (p.residual.present() && p.residual.dtype != p.x.dtype))
    return Support::no(
        fmt::format("x {}, weight {}{}: cuBLASLt takes one dtype throughout", dtype_name(p.x.dtype),
                    dtype_name(p.weight.dtype),
                    p.bias.present() ? fmt::format(", bias {}", dtype_name(p.bias.dtype)) : ""));
  if (p.bias.present() && p.x.dtype != DType::f32 && p.weight.dim(0) % 8 != 0)
    return Support::no(fmt::format(
        "bias in {} on {} features: cuBLASLt rounds before it adds one to rows that are no multiple of "
        "16 bytes",
        dtype_name(p.bias.dtype), p.weight.dim(0)));
  if (p.x.dim(1) == 0) return Support::no("no input features: cuBLASLt takes at least one");
  if (p.out.numel() == 0) return Support::yes();
  for (const TensorView* t : {&p.x, &p.out, &p.residual})
    if (t->present() && t->dim(0) > 1 && t->stride(0) < t->dim(1))
      return Support::no(fmt::format("rows {} apart and {} long: cuBLASLt takes rows that do not overlap",
                                     t->stride(0), t->dim(1)));
  const std::int64_t row = p.weight.stride(0), col = p.weight.stride(1);
  if (!(has_rows(p.weight) && (p.weight.dim(0) <= 1 || row >= p.weight.dim(1))) &&
      !((p.weight.dim(0) <= 1 || row == 1) && col >= p.weight.dim(0)))
    return Support::no(fmt::format("weight strides {}, {}: cuBLASLt takes dense rows or columns", row, col));
  try {
    cublasLtMatmulAlgo_t algorithm;
    if (!find_algorithm(*describe(p, ctx.tf32), p.x.dim(1), ctx.caps.device.index, 16, &algorithm))
      return Support::no("cuBLASLt has no algorithm for this product");
  } catch (const Error& e) {  // cuBLASLt does not start on this device
    return Support::no(std::string("cuBLASLt: ") + e.what());
  }
  return Support::yes();
}

std::shared_ptr<CublasLtState> cublaslt::prepare(const LinearParams& p, const PlanContext& ctx,
                                                 std::size_t* workspace_bytes) {
  if (p.out.numel() == 0) return std::make_shared<CublasLtState>();
  auto s = describe(p, ctx.tf32);
  const int device = ctx.caps.device.index;
  if (!find_algorithm(*s, p.x.dim(1), device, 16, &s->aligned))
    throw Error(ErrorCode::unavailable, "cuBLASLt has no algorithm for this product");
  const auto element = static_cast<std::uint32_t>(dtype_info(p.x.dtype).block_bytes);
  s->has_unaligned = find_algorithm(*s, p.x.dim(1), device, element, &s->unaligned);
  *workspace_bytes = kWorkspaceBytes;
  return s;
}

void cublaslt::run(const LinearParams& p, const CublasLtState& s, const RunContext& ctx) {
  if (p.out.numel() == 0) return;
  const CurrentDevice current(p.x.device.index, ctx.stream);
  bool aligned = true;
  for (const TensorView* t : {&p.x, &p.weight, &p.residual, &p.out})
    aligned &= !t->present() || reinterpret_cast<std::uintptr_t>(t->data) % 16 == 0;
  if (!aligned && !s.has_unaligned)
    throw Error(ErrorCode::invalid_argument, "linear: cuBLASLt expected operands aligned to 16 bytes");
  // The bias is named by the description, which calls in other threads share: a call with another has its own.
  const ProductDescription own = data_or_null(p.bias) == s.bias ? nullptr : product_of(p, s.tf32);
  const float one = 1, kept = p.residual.present() ? 1.0f : 0.0f;
  const void* const added = p.residual.present() ? p.residual.data : p.out.data;
  check_lt(
      library().cublasLtMatmul(handle_of(p.x.device.index), own ? own.get() : s.product.get(), &one,
                               p.weight.data, s.weight.get(), p.x.data, s.x.get(), &kept, added,
                               s.added.get(), p.out.data, s.out.get(), aligned ? &s.aligned : &s.unaligned,
                               ctx.workspace, kWorkspaceBytes, static_cast<cudaStream_t>(ctx.stream)),
      "cublasLtMatmul");
}

}  // namespace kf::cuda
