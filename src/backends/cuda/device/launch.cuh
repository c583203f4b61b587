// Launching on the caller's stream, on the device of its tensors. Our kernels are launched as programmatic dependents: one
// may be scheduled while its predecessor drains, and waits for it in wait_for_predecessor(), its first statement.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/runtime.h"
#include "kf/kernel.h"
#include "kf/tensor.h"

namespace kf::cuda {

class Launch {
 public:
  Launch(const TensorView& on, const RunContext& ctx)
      : current_(on.device.index), stream_(static_cast<cudaStream_t>(ctx.stream)), device_(on.device.index) {}

  TableFault* fault() const { return table_fault(device_); }

  // Before a kernel is launched with more shared memory than it gets unasked.
  static void allow_shared(const void* kernel, std::size_t bytes) {
    if (bytes > kDefaultShared)
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
  }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, A&&... args) const {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = 1;
    check(cudaLaunchKernelEx(&config, kernel, P(args)...), "cudaLaunchKernelEx");
  }

 private:
  static constexpr std::size_t kDefaultShared = 44 << 10;  // of 48, which what a kernel declares is part of
  CurrentDevice current_;
  cudaStream_t stream_;
  int device_;
};

// Until all that the kernels before have written can be seen. Their successor may then be scheduled in turn.
__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Notes the first table entry that is out of range.
__device__ inline void note_fault(TableFault* fault, TableFault::Table table, std::int64_t entry,
                                  std::int64_t value, std::int64_t limit) {
  if (atomicCAS(fault->claim, 0, 1) != 0) return;
  fault->entry = entry;
  fault->value = value;
  fault->limit = limit;
  __threadfence_system();
  *static_cast<volatile int*>(&fault->table) = table;
}

}  // namespace kf::cuda
