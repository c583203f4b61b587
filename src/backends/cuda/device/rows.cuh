// Kernels over the rows of a tensor: how many threads a row gets, and how they go through it.
//
// A thread holds kVecs vectors of W elements of its row in registers, as they lie, so that a row is read once, and all of it is
// on its way before any is used; kVecs = 0 is for rows too long for that, which are read again for each pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <cuda_runtime.h>

#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/machine.cuh"
#include "core/rows.h"

namespace kf::cuda {

struct RowShape {
  int vecs = 0;            // kVecs
  int threads_x = 1;       // a row
  int rows_per_block = 1;  // where a row takes at most a warp
  dim3 block() const { return dim3(static_cast<unsigned>(threads_x), static_cast<unsigned>(rows_per_block)); }
  dim3 grid(std::int64_t rows) const {
    return dim3(static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block));
  }
};

// Vectors a thread, by whether there are rows enough to fill the device. Where there are, more of them are on their way at a time;
// where there are not, a row is done sooner by more threads.
inline int vectors_each(std::int64_t rows) { return rows >= 2048 ? 4 : 2; }
// Blocks of kMaxRowThreads that a multiprocessor is to hold, so that registers leave room for enough rows on their way.
constexpr int row_blocks(int vecs) { return vecs == 8 ? 1 : vecs == 4 ? 2 : 3; }

// The most vectors a thread holds: more would not fit the registers that a wave of 64 lanes leaves it.
inline constexpr int kMaxVecs = kWarp == 32 ? 8 : 4;

// The most threads of a block of these kernels.
inline constexpr int kMaxRowThreads = 512;

// For rows of n elements in vectors of `width`: about `each` a thread.
inline RowShape row_shape(std::int64_t n, int width, int each = 2) {
  constexpr int kThreads = 128;
  const std::int64_t vectors = (n + width - 1) / width;
  RowShape s;
  if (vectors <= kWarp) {
    while (s.threads_x < vectors) s.threads_x *= 2;
    s.rows_per_block = kThreads / s.threads_x;
  } else {
    s.threads_x = static_cast<int>(
        std::min<std::int64_t>(kMaxRowThreads, ((vectors + each - 1) / each + kWarp - 1) / kWarp * kWarp));
    s.threads_x = std::max(s.threads_x, kWarp);
    if (s.threads_x == kWarp) s.rows_per_block = kThreads / kWarp;
  }
  const std::int64_t vecs = (vectors + s.threads_x - 1) / s.threads_x;
  s.vecs = 1;
  while (s.vecs < vecs && s.vecs <= kMaxVecs) s.vecs *= 2;
  if (s.vecs > kMaxVecs) s.vecs = 0;
  return s;
}

// Calls f(std::integral_constant<int, vecs>()).
template <class F>
void with_vecs(int vecs, F&& f) {
  switch (vecs) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 8:
      return f(std::integral_constant<int, kMaxVecs>());
    default:
      return f(std::integral_constant<int, 0>());
  }
}

// Whether vectors of W elements from the start of every row of t are aligned.
inline bool aligned_rows(const TensorView& t, int width) {
  if (!t.present() || t.numel() == 0) return true;
  const std::int64_t bytes = dtype_info(t.dtype).block_bytes;
  const std::int64_t alignment = std::min<std::int64_t>(16, bytes * width);
  if (reinterpret_cast<std::uintptr_t>(t.data) % static_cast<std::uintptr_t>(alignment) != 0) return false;
  for (int i = 0; i < t.rank - 1; ++i)
    if (t.shape[i] > 1 && t.strides[i] * bytes % alignment != 0) return false;
  return t.dim(-1) % width == 0;
}

// Calls f(std::type_identity<T>(), std::integral_constant<int, W>()) for the element type T of `dtype`, with W elements a
// 16-byte access where all the tensors allow it, else one.
template <class F>
void with_vectors(DType dtype, std::initializer_list<const TensorView*> tensors, F&& f) {
  with_activation_type(dtype, [&]<class T>(std::type_identity<T> type) {
    constexpr int kWidth = kVectorWidth<T>;
    const bool wide = std::all_of(tensors.begin(), tensors.end(),
                                  [&](const TensorView* t) { return aligned_rows(*t, kWidth); });
    if (wide) {
      f(type, std::integral_constant<int, kWidth>());
    } else {
      f(type, std::integral_constant<int, 1>());
    }
  });
}

// Calls f(j, i) for this thread's vectors of a row: the j-th begins at element i. With kVecs = 0, j is 0.
template <int kVecs, int W, class F>
__device__ inline void for_each_vector(int n, F&& f) {
  if constexpr (kVecs > 0) {
#pragma unroll
    for (int j = 0; j < kVecs; ++j)
      if (const int i = (j * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * W; i < n)
        f(j, i);
  } else {
    for (int i = static_cast<int>(threadIdx.x) * W; i < n; i += static_cast<int>(blockDim.x) * W) f(0, i);
  }
}

// This thread's part of a row: held, or read again each time.
template <class T, int W, int kVecs>
struct HeldRow {
  const T* row;
  int n;  // 0 for a thread that has none
  Pack<T, W> held[kVecs > 0 ? kVecs : 1];

  __device__ void fill() {
    if constexpr (kVecs > 0)
      for_each_vector<kVecs, W>(n, [&](int j, int i) { held[j] = load_pack<W>(row + i); });
  }
  // The vector that for_each_vector() numbers j, at element i.
  __device__ void get(int j, int i, float (&v)[W]) const {
    if constexpr (kVecs > 0) {
      widen(held[j], v);
    } else {
      load(row + i, v);
    }
  }
};

}  // namespace kf::cuda
