// Sizes of the attention kernels' tiles, which the host plans with.
#pragma once

#include <algorithm>
#include <cstddef>

#include "backends/cuda/device/limits.h"

namespace kf::cuda::attention {

inline constexpr int kMaxDim = 256;  // of heads, in keys and in values

// FlashAttention-2's: q stays in shared memory beside one tile of keys and one of values.
template <int kDim>
struct Flash2Shape {
  static constexpr int kRows = 128;
  static constexpr int kKeys = kDim == 64 ? 128 : 64;
  static constexpr int kWarps = kDim == 256 ? 8 : 4;
  static constexpr int kBlocksPerSm = kDim == 256 ? 1 : 2;
  static constexpr std::size_t kSharedBytes = static_cast<std::size_t>(kRows + 2 * kKeys) * kDim * 2;
};

// Blocks of a decode kernel's cluster, as many as any device with clusters has (16 have not been faster), and the keys of one,
// beyond which all blocks share all keys instead.
inline constexpr int kMostClusterBlocks = 8, kMostKeysOfBlock = 1024;

// Each warp has a ring of tiles of its own.
template <int kDim, int kWarps_ = 4>
struct DecodeShape {
  static constexpr int kRows = 16, kWarps = kWarps_, kWarpKeys = 16;
  static constexpr int kKeys = kWarps * kWarpKeys;
  static constexpr int kStages = kDim == 64 ? 6 : 3;
  static constexpr int kBlocksPerSm = kDim == 256 || kWarps > 4 ? 1 : 2;
  static constexpr int kTileBytes = kWarpKeys * kDim * 2;
  static constexpr int kQueryBytes = kRows * kDim * 2;
  static constexpr int kMergeStride = kDim + 8;  // floats
  static constexpr std::size_t kRingBytes = std::size_t{kWarps} * kStages * 2 * kTileBytes;
  // What warps have lies in the memory of the rings; what a cluster's blocks write to each other has its own, since the others may
  // still be reading keys: for each block what it has of the elements that this one merges, and of each row the largest score and
  // the sum.
  static_assert(kRingBytes >= sizeof(float) * kWarps * kRows * (kMergeStride + 2));
  static constexpr std::size_t kInboxBytes =
      sizeof(float) * (kRows * kDim + kMostClusterBlocks * (4 + 4 * kRows));
  static constexpr std::size_t kSharedBytes = kQueryBytes + kRingBytes + kInboxBytes;
};
// Where few units leave most of the device idle, a cluster's blocks have twice the warps, if shared memory allows.
template <int kDim>
using WideDecodeShape = DecodeShape<kDim, kDim == 256 ? 4 : 8>;

// In groups of 32 lanes, whatever a warp has. Where a block has less shared memory than both take, values come into the place of the
// keys once these are multiplied.
struct F32Shape {
  static constexpr int kRows = 16, kKeys = 32, kGroups = 4;
  static constexpr int kBlocksPerSm = 4;
  static constexpr bool kInTurns = kMostShared < std::size_t{96} << 10;
  static constexpr std::size_t shared_bytes(int head_dim, int value_dim) {
    const int keys = kKeys * (head_dim + 1), values = kKeys * value_dim;
    return sizeof(float) *
           static_cast<std::size_t>(kRows * head_dim + (kInTurns ? std::max(keys, values) : keys + values));
  }
};

}  // namespace kf::cuda::attention
