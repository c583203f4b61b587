// Rows of weights as streamed_kernel takes them: of x's dtype.
//
// `Rows` says how a warp's 16 rows come to its ring and from there to the matrix units; a lane has two of them. It has
//   Args, kCut       what the kernel is given, and how weights are cut
//   order(), ordered()  which of 8 neighbouring inputs comes where
//   find(), ask()    the rows of a group that is asked for, and a step of them: to the ring, columns [0, left) of it
//   start(), next()  of the group that is multiplied next, or its next step: what else is loaded for it
//   inspect()        of the staged inputs, by all threads
//   multiply()       adds a step's products to the sums of each tile of 8 tokens; calls load_next() when it has taken what next() or
//                    start() has loaded, and ask_again() when it has read its place in the ring
#pragma once

#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/linear/streamed_kernel.h"

namespace kf::cuda::streamed {

// Rows `row` of the parts (of a gated layer the second is the other weight).
struct RowPair {
  int part[2];
  int row[2];
  __device__ RowPair(int part0, int part1, int row0, int row1) : part{part0, part1}, row{row0, row1} {}
};

template <class T>
struct PlainRows {
  using Args = gemv::Args;
  static constexpr Cut kCut = kPlainCut;
  static __device__ constexpr int order(int k) { return k; }
  static bool is_gated(const Args& a) { return a.up != nullptr; }
  __device__ static uint4 ordered(uint4 v) { return v; }

  const T* rows[2];

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ void find(const Args& a, const RowPair& at, int column) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool up = h == 1 && a.up;
      const Part& p = a.parts[up ? 0 : at.part[h]];
      rows[h] = static_cast<const T*>(up ? a.up : p.weight) +
                std::int64_t{at.row[h]} * (up ? a.up_stride : p.weight_stride) + column + lane() % 4 * 8;
    }
  }
  // Each lane reads from the ring what it has asked for itself.
  __device__ void ask(const Args& a, unsigned char* to, int step, int left) const {
    const std::uint32_t address = shared_address(to + lane() * 16);
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const bool valid = left - lane() % 4 * 8 > j * 32;
        copy_async(address + static_cast<std::uint32_t>((j * 2 + h) * 512),
                   valid ? rows[h] + step * kCut.step + j * 32 : static_cast<const T*>(a.parts[0].weight),
                   valid);
      }
  }
  __device__ void inspect(const Args&, const T*, int, int) {}
  __device__ void start(const Args&, const RowPair&, int) {}
  __device__ void next(const Args&, int) {}

  template <int kTiles, class Ask, class Next>
  __device__ void multiply(const Args&, const unsigned char* place, const T* tokens, int stride,
                           float (&sums)[kTiles][4], const Ask& ask_again, const Next&) const {
    uint4 w[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        w[j][h] = *reinterpret_cast<const uint4*>(place + lane() * 16 + (j * 2 + h) * 512);
    ask_again();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const std::uint32_t low[4] = {w[j][0].x, w[j][1].x, w[j][0].y, w[j][1].y},
                          high[4] = {w[j][0].z, w[j][1].z, w[j][0].w, w[j][1].w};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 x = *reinterpret_cast<const uint4*>(tokens + n * 8 * stride + j * 32);
        multiply_add<T>(sums[n], low, x.x, x.y);
        multiply_add<T>(sums[n], high, x.z, x.w);
      }
    }
  }
};

}  // namespace kf::cuda::streamed
