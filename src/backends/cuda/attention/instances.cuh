// Definitions that flash2_*.cu instantiate.
#pragma once

#include <type_traits>

#include "backends/cuda/attention/combine.cuh"
#include "backends/cuda/attention/decode.cuh"
#include "backends/cuda/attention/launches.h"

namespace kf::cuda::attention {

template <class T, int kDim>
void launch_flash2(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx) {
  using S = Flash2Shape<kDim>;
  const Launch launch(on, ctx);
  const bool plain = a.softcap <= 0 && !a.slopes && !a.mask.data && a.scale > 0;
  const auto kernel = plain ? flash2_kernel<T, kDim, true> : flash2_kernel<T, kDim, false>;
  Launch::allow_shared(reinterpret_cast<const void*>(kernel), S::kSharedBytes);
  launch(kernel, dim3(grid.blocks), dim3(S::kWarps * 32), S::kSharedBytes, a);
  launch_combine<T, S::kRows, S::kKeys>(launch, a, grid);
}

template <class T, int kDim>
void launch_decode(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx) {
  using S = DecodeShape<kDim>;
  const Launch launch(on, ctx);
  if (a.cluster_blocks > 0) {
    const auto go = [&]<class Shape>(std::type_identity<Shape>) {
      const auto kernel = decode_kernel<T, kDim, Shape, true>;
      Launch::allow_shared(reinterpret_cast<const void*>(kernel), Shape::kSharedBytes);
      const auto blocks = static_cast<unsigned>(a.cluster_blocks);
      launch.in_clusters(blocks, kernel, dim3(grid.units * blocks), dim3(Shape::kWarps * 32),
                         Shape::kSharedBytes, a);
    };
    return a.wide_blocks ? go(std::type_identity<WideDecodeShape<kDim>>()) : go(std::type_identity<S>());
  }
  const auto kernel = decode_kernel<T, kDim, S, false>;
  Launch::allow_shared(reinterpret_cast<const void*>(kernel), S::kSharedBytes);
  launch(kernel, dim3(grid.blocks), dim3(S::kWarps * 32), S::kSharedBytes, a);
  launch_combine<T, S::kRows, S::kKeys>(launch, a, grid);
}

}  // namespace kf::cuda::attention
