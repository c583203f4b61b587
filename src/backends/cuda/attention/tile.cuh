// One warp's rows against a tile of keys: scores, online softmax (Dao et al., FlashAttention-2, 2023), values; fragments as in
// device/mma.cuh. A warp has kBlocks blocks of 16 rows; a lane has rows lane / 4 and lane / 4 + 8 of each.
#pragma once

#include "backends/cuda/attention/row_end.cuh"
#include "backends/cuda/attention/sequences.cuh"
#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/math.cuh"
#include "backends/cuda/device/mma.cuh"

namespace kf::cuda::attention {

// The sum over the four lanes that share a row, and the largest.
__device__ inline float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ inline float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

template <class T, int kDim, int kBlocks, int kKeys>
struct Tile {
  static constexpr int kRowBytes = kDim * 2;

  float out[kBlocks][kDim / 8][4];  // not yet divided by the sum
  float max[kBlocks][2];            // in units of the scores
  float sum[kBlocks][2];            // this lane's columns only
  float scores[kBlocks][kKeys / 8][4];

  __device__ void clear() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[b][d][i] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) max[b][h] = -INFINITY, sum[b][h] = 0;
    }
  }

  // scores = q k^T; q: the warp's rows.
  __device__ void multiply_keys(std::uint32_t q, std::uint32_t k) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::uint32_t q_at = chunk_address<kRowBytes>(q, lane & 15, lane >> 4);
    const std::uint32_t k_at = chunk_address<kRowBytes>(k, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[b][n][i] = 0;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      std::uint32_t a[kBlocks][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) load_matrices(a[b], (q_at ^ (d << 5)) + b * 16 * kRowBytes);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        std::uint32_t f[4];
        load_matrices(f, (k_at ^ (d << 5)) + n * 16 * kRowBytes);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          multiply_add<T>(scores[b][2 * n], a[b], f[0], f[1]);
          multiply_add<T>(scores[b][2 * n + 1], a[b], f[2], f[3]);
        }
      }
    }
  }

  // Queries that stay in registers, of few rows.
  struct Queries {
    std::uint32_t at[kDim / 16][4];
    __device__ void load(std::uint32_t q) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const std::uint32_t q_at = chunk_address<kRowBytes>(q, lane & 15, lane >> 4);
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) load_matrices(at[d], q_at ^ (d << 5));
    }
  };
  // The same by them, in two sums of every other column each: half as many instructions that wait for the one before.
  __device__ void multiply_keys(const Queries& q, std::uint32_t k) {
    static_assert(kBlocks == 1);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::uint32_t k_at = chunk_address<kRowBytes>(k, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      float sums[2][2][4] = {};
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        std::uint32_t f[4];
        load_matrices(f, (k_at ^ (d << 5)) + n * 16 * kRowBytes);
        multiply_add<T>(sums[d % 2][0], q.at[d], f[0], f[1]);
        multiply_add<T>(sums[d % 2][1], q.at[d], f[2], f[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[0][2 * n][i] = sums[0][0][i] + sums[1][0][i];
        scores[0][2 * n + 1][i] = sums[0][1][i] + sums[1][1][i];
      }
    }
  }

  // Of a lane's row: scores outside columns [begin, end) count for nothing.
  __device__ void hide(int b, int h, int begin, int end) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = n * 8 + column + i;
        if (at < begin || at >= end) scores[b][n][2 * h + i] = -INFINITY;
      }
  }

  // Scores to probabilities: exp2(unit * (score - largest)); what was summed before is scaled alike.
  __device__ void softmax(float unit) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = max[b][h];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
          largest = fmaxf(largest, fmaxf(scores[b][n][2 * h], scores[b][n][2 * h + 1]));
        largest = quad_max(largest);
        const float base = largest == -INFINITY ? 0.0f : largest * unit;
        const float scale = approximate_exp2(fmaf(max[b][h], unit, -base));
        max[b][h] = largest;
        float s = sum[b][h] * scale;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            scores[b][n][i] = approximate_exp2(fmaf(scores[b][n][i], unit, -base));
            s += scores[b][n][i];
          }
        sum[b][h] = s;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) out[b][d][2 * h] *= scale, out[b][d][2 * h + 1] *= scale;
      }
    }
  }

  // out += probabilities v.
  __device__ void multiply_values(std::uint32_t v) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::uint32_t v_at = chunk_address<kRowBytes>(v, lane & 15, lane >> 4);
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      std::uint32_t a[kBlocks][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[b][i] =
              pack_pair<T>(scores[b][2 * n + i / 2][i % 2 * 2], scores[b][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        std::uint32_t f[4];
        load_transposed(f, (v_at ^ (d << 5)) + n * 16 * kRowBytes);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          multiply_add<T>(out[b][2 * d], a[b], f[0], f[1]);
          multiply_add<T>(out[b][2 * d + 1], a[b], f[2], f[3]);
        }
      }
    }
  }

  // The same where values hold NaN or infinities that some rows may not see: those are left out, and not multiplied by zero.
  // `visible(block, half, column)` says.
  template <class F>
  __device__ void multiply_values_apart(const T* v, F visible) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll 1
      for (int c = 0; c < 8; ++c) {
        const int key = n * 8 + c;
        float p[kBlocks][2];
        bool seen[kBlocks][2];
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float mine = c % 2 ? scores[b][n][2 * h + 1] : scores[b][n][2 * h];
            p[b][h] = __shfl_sync(0xffffffffu, mine, (lane & ~3) | (c / 2));
            seen[b][h] = visible(b, h, key);
          }
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
          const T* const at = v + key * kDim + ((d ^ (key & 7)) * 8) + lane % 4 * 2;
#pragma unroll
          for (int b = 0; b < kBlocks; ++b)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              if (seen[b][i / 2]) out[b][d][i] = fmaf(p[b][i / 2], widen(at[i % 2]), out[b][d][i]);
        }
      }
  }
};

// Where a key's row begins, in chunks of 16 bytes from the operand's: 64 GiB are within reach.
__device__ inline std::uint32_t key_chunk(const Keys& k, const KeyPlace& at, int kv_head) {
  return static_cast<std::uint32_t>(key_offset(k, at, kv_head) >> 3);
}

// kKeys rows that begin at chunks of `data` into a tile, by kThreads threads; `chunk_of(row)` is called by all of a warp. Zeros
// from row `count` on and beyond `dim`.
template <int kDim, int kKeys, int kThreads, class F>
__device__ inline void load_rows(std::uint32_t to, const void* data, int count, int dim, int thread,
                                 F chunk_of) {
  constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0);
  const int chunk = thread % kChunks, first = thread / kChunks;
  const bool inside = chunk * 8 < dim;
#pragma unroll
  for (int row = 0; row < kKeys; row += kStep) {
    const int r = row + first;
    const std::uint32_t from = chunk_of(r) + chunk;
    // Where nothing is read the address still has to be some.
    const bool valid = inside && r < count;
    copy_async(chunk_address<kDim * 2>(to, r, chunk), static_cast<const uint4*>(data) + (valid ? from : 0),
               valid);
  }
}

// Rows of q: a unit's, zeros beyond the last.
template <class T, int kDim, int kRows, int kThreads>
__device__ inline void load_queries(std::uint32_t to, const Args& a, const Unit& u, int thread) {
  constexpr int kChunks = kDim / 8;
  const int chunk = thread % kChunks;
#pragma unroll
  for (int row = 0; row < kRows; row += kThreads / kChunks) {
    const int r = row + thread / kChunks, flat = u.row_tile * kRows + r;
    if (r >= kRows) break;
    const Row at = row_of(a, u.kv_head, flat);
    const bool valid = at.token < u.span.seqlen_q && chunk * 8 < a.head_dim;
    const T* from = static_cast<const T*>(a.q.data);
    if (valid) from += row_offset(a.q, a, u.span, at.token, at.head) + chunk * 8;
    copy_async(chunk_address<kDim * 2>(to, r, chunk), from, valid);
  }
}

}  // namespace kf::cuda::attention
