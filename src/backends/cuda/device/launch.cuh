// Launching on the caller's stream, on the device of its tensors. Our kernels are launched as programmatic dependents: one
// may be scheduled while its predecessor drains, and waits for it in wait_for_predecessor(), its first statement.
#pragma once

#include <utility>

#include "backends/cuda/device/machine.cuh"
#include "backends/cuda/runtime.h"
#include "kf/kernel.h"
#include "kf/tensor.h"

namespace kf::cuda {

class Launch {
 public:
  Launch(const TensorView& on, const RunContext& ctx)
      : current_(on.device.index, ctx.stream), stream_(static_cast<cudaStream_t>(ctx.stream)), device_(on.device.index) {}

  TableFault* fault() const { return table_fault(device_); }

#ifdef KF_WARP
  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, A&&... args) const {
    check(launch_kernel(kernel, grid, block, shared_bytes, stream_, std::forward<A>(args)...),
          "cudaLaunchKernel");
  }
  static void allow_shared(const void*, std::size_t) {}

 private:
#else
  // Before a kernel is launched with more shared memory than it gets unasked.
  static void allow_shared(const void* kernel, std::size_t bytes) {
    if (bytes > kDefaultShared)
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
  }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, A&&... args) const {
    in_clusters(1, kernel, grid, block, shared_bytes, std::forward<A>(args)...);
  }

  // In clusters of so many neighbouring blocks, for sm_90 on; 1: without.
  template <class... P, class... A>
  void in_clusters(unsigned blocks_of_cluster, void (*kernel)(P...), dim3 grid, dim3 block,
                   std::size_t shared_bytes, A&&... args) const {
    Attributes attributes(blocks_of_cluster);
    cudaLaunchConfig_t config = attributes.config(grid, block, shared_bytes);
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, P(args)...), "cudaLaunchKernelEx");
  }

  // How many such clusters the current device runs at once.
  template <class... P>
  static int clusters_at_once(unsigned blocks_of_cluster, void (*kernel)(P...), dim3 block,
                              std::size_t shared_bytes) {
    int count = 0;
    if (blocks_of_cluster <= 1) {
      int device = 0;
      check(cudaGetDevice(&device), "cudaGetDevice");
      check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, static_cast<int>(block.x),
                                                          shared_bytes),
            "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
      return count * multiprocessors(device);
    }
    Attributes attributes(blocks_of_cluster);
    const cudaLaunchConfig_t config = attributes.config(dim3(blocks_of_cluster), block, shared_bytes);
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "cudaOccupancyMaxActiveClusters");
    return count;
  }

 private:
  struct Attributes {
    cudaLaunchAttribute values[2]{};
    unsigned count = 1;
    explicit Attributes(unsigned blocks_of_cluster) {
      values[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      values[0].val.programmaticStreamSerializationAllowed = 1;
      if (blocks_of_cluster <= 1) return;
      values[1].id = cudaLaunchAttributeClusterDimension;
      values[1].val.clusterDim = {blocks_of_cluster, 1, 1};
      count = 2;
    }
    cudaLaunchConfig_t config(dim3 grid, dim3 block, std::size_t shared_bytes) {
      cudaLaunchConfig_t c{};
      c.gridDim = grid;
      c.blockDim = block;
      c.dynamicSmemBytes = shared_bytes;
      c.attrs = values;
      c.numAttrs = count;
      return c;
    }
  };
  static constexpr std::size_t kDefaultShared = 44 << 10;  // of 48, which what a kernel declares is part of
#endif
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
