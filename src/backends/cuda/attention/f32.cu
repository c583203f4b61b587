// Attention in f32, whatever q, keys and values are kept in: keys and values are widened, or dequantized, on their way to
// shared memory. Scores: a lane a key; values: a lane a column.
#include "backends/cuda/attention/combine.cuh"
#include "backends/cuda/attention/keys.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace kf::cuda::attention {
namespace {

constexpr int kRows = F32Shape::kRows, kKeys = F32Shape::kKeys, kGroups = F32Shape::kGroups, kLanes = kKeys;
constexpr int kThreads = kGroups * kLanes, kGroupRows = kRows / kGroups, kColumns = kMaxDim / kLanes;
static_assert(kLanes <= kWarp && kWarp <= kThreads);

// A tile of keys or values as f32; zeros from `end` on.
__device__ void widen_keys(float* to, int stride, const Keys& k, const Args& a, const Span& s, int kv_head,
                           int first, int end, int dim) {
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * dim; i += kThreads) {
    const int row = i / dim, d = i % dim;
    to[row * stride + d] =
        first + row < end ? key_element(k, key_place(a, s, first + row), kv_head, d) : 0.0f;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads) void f32_kernel(const __grid_constant__ Args args) {
  const Args& a = first_argument(args);
  wait_for_predecessor();
  Segment s;
  if (!find_segment<kRows, kKeys>(a, &s)) return;
  const Span& span = s.unit.span;
  const int kv_head = s.unit.kv_head, end = s.keys.end, dim = a.head_dim;
  const RowsOfTile<kRows> tile_rows(a, s.unit);
  float *const q_s = dynamic_shared<float>(), *const k_s = q_s + kRows * dim,
               *const v_s = F32Shape::kInTurns ? k_s : k_s + kKeys * (dim + 1);
  const int group = static_cast<int>(threadIdx.x) / kLanes, lane = static_cast<int>(threadIdx.x) % kLanes;
  const int first_lane = static_cast<int>(threadIdx.x) % kWarp - lane;  // the group's, of its warp

  for (int i = static_cast<int>(threadIdx.x); i < kRows * dim; i += kThreads) {
    const int row = i / dim;
    const Row at = row_of(a, kv_head, s.unit.row_tile * kRows + row);
    q_s[i] =
        row < tile_rows.count
            ? widen(static_cast<const T*>(a.q.data)[row_offset(a.q, a, span, at.token, at.head) + i % dim])
            : 0.0f;
  }
  int token[kGroupRows], head[kGroupRows];
  KeyRange visible[kGroupRows];
  float out[kGroupRows][kColumns] = {}, largest[kGroupRows], sum[kGroupRows] = {};
#pragma unroll
  for (int r = 0; r < kGroupRows; ++r) {
    const Row at = row_of(a, kv_head, s.unit.row_tile * kRows + group * kGroupRows + r);
    token[r] = min(at.token, tile_rows.last_token);
    head[r] = at.head;
    visible[r] = visible_keys(a, span, token[r], token[r]);
    largest[r] = -INFINITY;
  }
  for (int first = s.keys.begin; first < end; first += kKeys) {
    __syncthreads();  // the tile before has been read
    widen_keys(k_s, dim + 1, a.k, a, span, kv_head, first, end, dim);
    if (!F32Shape::kInTurns) widen_keys(v_s, a.value_dim, a.v, a, span, kv_head, first, end, a.value_dim);
    __syncthreads();
    float score[kGroupRows] = {};
    for (int d = 0; d < dim; ++d) {
      const float k = k_s[lane * (dim + 1) + d];
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r)
        score[r] = fmaf(q_s[(group * kGroupRows + r) * dim + d], k, score[r]);
    }
    const int key = first + lane;
    unsigned seen[kGroupRows];
#pragma unroll
    for (int r = 0; r < kGroupRows; ++r) {
      const bool sees = key < end && key >= visible[r].begin && key < visible[r].end;
      seen[r] = static_cast<unsigned>(ballot(sees) >> first_lane);
      score[r] = sees ? RowFeatures(a, span, token[r], head[r]).score(a, score[r], key) : -INFINITY;
      const float top = fmaxf(largest[r], lanes_reduce<Max>(score[r], kLanes));
      const float base = top == -INFINITY ? 0.0f : top;
      const float scale = expf(largest[r] - base);
      largest[r] = top;
      score[r] = sees ? expf(score[r] - base) : 0.0f;
      sum[r] = sum[r] * scale + lanes_reduce<Sum>(score[r], kLanes);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[r][c] *= scale;
    }
    if (F32Shape::kInTurns) {
      __syncthreads();
      widen_keys(v_s, a.value_dim, a.v, a, span, kv_head, first, end, a.value_dim);
      __syncthreads();
    }
    for (int j = 0; j < kKeys; ++j) {
      float v[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        v[c] = lane + kLanes * c < a.value_dim ? v_s[j * a.value_dim + lane + kLanes * c] : 0.0f;
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r) {
        const float p = shuffle(score[r], first_lane + j);
        if (seen[r] >> j & 1) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) out[r][c] = fmaf(p, v[c], out[r][c]);
        }
      }
    }
  }
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kRows;
#pragma unroll
  for (int r = 0; r < kGroupRows; ++r) {
    const int row = group * kGroupRows + r;
    if (row >= tile_rows.count) continue;
    const RowEnd e = end_row(a, s, head[r], largest[r], kLog2e, sum[r]);
    if (lane == 0) {
      if (s.whole)
        store_lse(a, span, token[r], head[r], e.lse);
      else
        a.partial_lse[slot + row] = e.lse;
    }
    T* const to = static_cast<T*>(a.out.data) + row_offset(a.out, a, span, token[r], head[r]);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = lane + kLanes * c;
      if (column >= a.value_dim) continue;
      const float v = e.factor == 0 ? 0.0f : out[r][c] * e.factor;
      if (s.whole)
        to[column] = narrow<T>(v);
      else
        a.partial[(slot + row) * a.value_dim + column] = v;
    }
  }
}

}  // namespace

template <class T>
void launch_f32(const Args& a, const Grid& grid, const TensorView& on, const RunContext& ctx) {
  const Launch launch(on, ctx);
  const std::size_t bytes = F32Shape::shared_bytes(a.head_dim, a.value_dim);
  Launch::allow_shared(reinterpret_cast<const void*>(f32_kernel<T>), bytes);
  launch(f32_kernel<T>, dim3(grid.blocks), dim3(kThreads), bytes, a);
  launch_combine<T, kRows, kKeys>(launch, a, grid);
}
template void launch_f32<float>(const Args&, const Grid&, const TensorView&, const RunContext&);
template void launch_f32<F16>(const Args&, const Grid&, const TensorView&, const RunContext&);
template void launch_f32<Bf16>(const Args&, const Grid&, const TensorView&, const RunContext&);

}  // namespace kf::cuda::attention
