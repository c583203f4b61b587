// Kernels of the user's as CUDA C++ source, compiled for the device at hand when a call is planned. Neither nvcc nor the
// CUDA toolkit is needed: NVRTC (libnvrtc) and the driver (libcuda) are opened at run time, also by a library that was
// built without the CUDA backend, which a device's calls need.
//
//   manager.register_custom_kernel(cuda_kernel("custom::twice", Op::activation, {
//       .source = R"(extern "C" __global__ void silu(const KF_TYPE* x, KF_TYPE* out, long long n) { ... })",
//       .entry = "silu", .args = {"x", "out", "x.numel"},
//       .shape = [](const CallSizes& call) { return LaunchShape::over(call.size("x.numel")); }}));
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kf/checked_kernel.h"
#include "kf/kernel.h"

namespace kf {

// Thread blocks and threads a block, x first, and dynamic shared memory.
struct LaunchShape {
  std::array<std::int64_t, 3> grid{1, 1, 1}, block{256, 1, 1};
  std::int64_t shared_bytes = 0;
  // As many blocks of `threads` as `items` take at one a thread.
  static LaunchShape over(std::int64_t items, std::int64_t threads = 256) {
    return {{(items + threads - 1) / threads, 1, 1}, {threads, 1, 1}, 0};
  }
};

// The sizes of a call, by name, as CudaSource::args names them.
class CallSizes {
 public:
  CallSizes(Op op, const void* params, const std::vector<std::string>& transposed)
      : op_(op), params_(params), transposed_(transposed) {}
  // Throws invalid_argument where the call has no such size.
  std::int64_t size(std::string_view name) const;
  Op op() const { return op_; }
  const void* params() const { return params_; }

 private:
  Op op_;
  const void* params_;
  const std::vector<std::string>& transposed_;
};

// A `__global__` function with its launch.
//
// args: what each of its parameters is given, in order, by name:
//   an operand of the op ("x", "out"): a pointer, null where an optional one is not given;
//   "x.shape[0]", "x.stride[0]" (elements), "x.numel": sizes; negative indices count from the end;
//   N, D (or D_in), D_out, H: rows and row length of x (or q), row length of the result, the FFN's intermediate size;
//   an attribute of the op ("eps", "causal"): its value, an enumeration's as an index.
// Sizes and integers may be given to any integer or floating-point parameter, a float to `float` and `double`.
//
// A call is declined where it has an operand, or an attribute that is not at its default, which args does not name; where
// floating-point operands are not all of one dtype among `dtypes`; and where an operand is not contiguous (those whose
// strides args names may lie in any way).
struct CudaSource {
  std::string source;
  std::string entry;  // "f", "ns::f", "f<4>"
  std::vector<std::string> args;
  std::function<LaunchShape(const CallSizes&)> shape;
  // For NVRTC, before them --gpu-architecture (where not given here) and -DKF_TYPE=float, __half or __nv_bfloat16.
  // <cuda_fp16.h> and others of the toolkit are found where they lie beside NVRTC or in $CUDA_HOME/include.
  std::vector<std::string> options = {};
  std::vector<DType> dtypes = {DType::f32};
  // Whether its launches may be recorded and replayed: all they depend on lies in the operands.
  bool graph_safe = true;
  // Weights, [out, in] in the op, that the function has as [in, out].
  std::vector<std::string> transposed = {};
  // Attributes beside those of args that the function minds.
  std::vector<std::string> settled = {};
};

// The row `name` of CUDA devices, a checked_kernel(). Throws invalid_argument where an entry of args, transposed or settled
// is no name of the op's. A source that does not compile is an invalid_argument of the call (or plan) that was to use it,
// with NVRTC's log and its line.
Kernel cuda_kernel(std::string name, Op op, CudaSource source, CheckOptions check = {});

// What NVRTC makes of a source, for an architecture ("sm_90") that need not be here.
struct CompiledCuda {
  std::string image;                    // a cubin, or PTX where NVRTC does not know the architecture
  std::string symbol;                   // of the entry
  std::vector<std::string> parameters;  // their types as PTX has them: "u64", "f32"
  std::string log;                      // warnings; empty where `cached`
  bool cached = false;                  // found on disk
};
// From the cache on disk ($KF_CACHE_DIR/cuda, ~/.cache/kf/cuda) where it has the same source, options, architecture and
// NVRTC; several processes may share it. Sources with options that name files or folders (-I, -include) are not cached:
// what those hold may change. Throws unavailable without NVRTC, invalid_argument with the log where it does not compile.
CompiledCuda compile_cuda(const std::string& name, const CudaSource& source, const std::string& architecture,
                          DType dtype = DType::f32);

}  // namespace kf
