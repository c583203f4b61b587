// Sizes of the attention kernels' tiles, which the host plans with.
#pragma once

#include <cstddef>

namespace kf::cuda::attention {

// FlashAttention-2's: q stays in shared memory beside one tile of keys and one of values.
template <int kDim>
struct Flash2Shape {
  static constexpr int kRows = 128;
  static constexpr int kKeys = kDim == 64 ? 128 : 64;
  static constexpr int kWarps = kDim == 256 ? 8 : 4;
  static constexpr int kBlocksPerSm = kDim == 256 ? 1 : 2;
  static constexpr std::size_t kSharedBytes = static_cast<std::size_t>(kRows + 2 * kKeys) * kDim * 2;
};

// Each warp has a ring of tiles of its own.
template <int kDim>
struct DecodeShape {
  static constexpr int kRows = 16, kWarps = 4, kWarpKeys = 16;
  static constexpr int kKeys = kWarps * kWarpKeys;
  static constexpr int kStages = kDim == 64 ? 6 : 3;
  static constexpr int kBlocksPerSm = kDim == 256 ? 1 : 2;
  static constexpr int kTileBytes = kWarpKeys * kDim * 2;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kMergeStride = kDim + 8;  // floats
  static constexpr std::size_t kRingBytes = std::size_t{kWarps} * kStages * 2 * kTileBytes;
  static constexpr std::size_t kSharedBytes = kQueryBytes + kRingBytes;
  // What warps have, and what the block has, in the memory of the rings.
  static_assert(kRingBytes >= sizeof(float) * (kWarps * kRows * (kMergeStride + 2) + kRows * (kDim + 2)));
};

// Blocks of a decode kernel's cluster, as many as any device with clusters has (16 have not been faster), and the keys of one,
// beyond which all blocks share all keys instead.
inline constexpr int kMostClusterBlocks = 8, kMostKeysOfBlock = 1024;

struct F32Shape {
  static constexpr int kRows = 16, kKeys = 32, kWarps = 4;
  static constexpr int kBlocksPerSm = 4;
  static constexpr int kMaxDim = 256;
  static constexpr std::size_t kSharedBytes = 0;  // beyond what the kernel declares
};

}  // namespace kf::cuda::attention
