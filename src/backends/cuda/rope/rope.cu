// One kernel for the three ops: each head of each token is a job of a few neighbouring lanes, which rotate it, or only move
// it, to its place in a tensor or a cache. A head is read before any of it is written, so that it may stay where it is.

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/rope/rope.h"
#include "backends/cuda/supports.h"

namespace kf::cuda {
namespace {

// Where the heads of a token go: [token, head] of a tensor, or of a cache by the token's slot.
struct Place {
  void* data;
  std::int64_t token_stride, head_stride;
  // A cache: page_size > 0.
  std::int64_t page_size, num_pages, page_stride, row_stride;
};

// The heads of one operand.
struct Stream {
  const void* x;  // null: absent
  std::int64_t token_stride, head_stride;
  int num_heads;
  bool rotate;
  const void* norm_weight;  // or null
  DType norm_weight_dtype;
  Place to;
};

struct RopeArgs {
  Stream streams[3];  // q, k, v
  std::int64_t num_tokens;
  int heads_a_token;   // of all streams
  int head_dim, half;  // half: half of rotary_dim
  const std::int32_t* positions;
  std::int64_t positions_stride, max_position;
  const float *cos, *sin;
  std::int64_t cos_stride, sin_stride;  // of rows; elements are neighbours
  const void* slots;
  std::int64_t slots_stride;
  bool slots_are_64_bit;
  bool interleaved, has_norm;
  float norm_eps, norm_weight_offset;
  TableFault* fault;
};

constexpr int kThreads = 128;

// The memory of a head in its place; null where the token has none.
template <class T>
__device__ T* head_at(const RopeArgs& a, const Stream& s, std::int64_t token, int head, bool notes) {
  std::int64_t offset = token * s.to.token_stride;
  if (s.to.page_size > 0) {
    const std::int64_t slot = a.slots_are_64_bit
                                  ? static_cast<const std::int64_t*>(a.slots)[token * a.slots_stride]
                                  : static_cast<const std::int32_t*>(a.slots)[token * a.slots_stride];
    if (slot < 0) return nullptr;
    if (slot >= s.to.num_pages * s.to.page_size) {
      if (notes) note_fault(a.fault, TableFault::slot_mapping, token, slot, s.to.num_pages * s.to.page_size);
      return nullptr;
    }
    offset = slot / s.to.page_size * s.to.page_stride + slot % s.to.page_size * s.to.row_stride;
  }
  return static_cast<T*>(s.to.data) + offset + head * s.to.head_stride;
}

// The vectors of a lane: W elements at `first` and W at `second`, which are pairs: element k of one with element k of the other,
// or, interleaved, neighbours.
struct Pair {
  int first, second;
};
__device__ inline Pair pair_at(const RopeArgs& a, int i, int half, int width) {
  return a.interleaved ? Pair{2 * i, 2 * i + width} : Pair{i, half + i};
}

__device__ inline void rotate(float& x1, float& x2, float c, float s) {
  const float y1 = x1 * c - x2 * s;
  x2 = x2 * c + x1 * s;
  x1 = y1;
}

// Turns both vectors; their angles begin at `i`.
template <int W>
__device__ void rotate(const RopeArgs& a, const float* cos, const float* sin, int i, float (&v1)[W],
                       float (&v2)[W]) {
  float c[W], s[W];
  load(cos + i, c);
  load(sin + i, s);
  if (!a.interleaved) {
#pragma unroll
    for (int k = 0; k < W; ++k) rotate(v1[k], v2[k], c[k], s[k]);
  } else if constexpr (W == 1) {
    rotate(v1[0], v2[0], c[0], s[0]);
  } else {
#pragma unroll
    for (int k = 0; k < W / 2; ++k) {
      rotate(v1[2 * k], v1[2 * k + 1], c[k], s[k]);
      rotate(v2[2 * k], v2[2 * k + 1], c[W / 2 + k], s[W / 2 + k]);
    }
  }
}

template <int W>
__device__ void normalise(const RopeArgs& a, const Stream& s, float inverse, int i, float (&v)[W]) {
  float w[W];
  load_any(s.norm_weight_dtype, s.norm_weight, i, w);
#pragma unroll
  for (int k = 0; k < W; ++k) v[k] *= inverse * (a.norm_weight_offset + w[k]);
}

template <int W>
__device__ float squares_of(const float (&v)[W]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < W; ++k) sum += v[k] * v[k];
  return sum;
}

// kLanes lanes do a head. kHeld: its halves are a vector a lane each, and all of it is rotated or none: it is read at once, before
// the position is known. Otherwise lanes go through it.
template <class T, class Cache, int W, int kLanes, bool kHeld>
__global__ void __launch_bounds__(kThreads) rope_kernel(const RopeArgs args) {
  const RopeArgs& a = first_argument(args);
  wait_for_predecessor();
  const unsigned job = (blockIdx.x * kThreads + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t token = job / static_cast<unsigned>(a.heads_a_token);
  int head = static_cast<int>(job % static_cast<unsigned>(a.heads_a_token));
  int which = 0;
  while (which < 2 && head >= a.streams[which].num_heads) head -= a.streams[which++].num_heads;
  const Stream& s = a.streams[which];
  // Lanes without a job, or whose token is left out, stay for the reductions of their warp.
  bool active = token < a.num_tokens;
  const T* const x =
      static_cast<const T*>(s.x) + (active ? token * s.token_stride + head * s.head_stride : 0);
  const Pair own = pair_at(a, lane * W, a.head_dim / 2, W);
  const bool holds = kHeld && active && lane * W < a.head_dim / 2;
  Pack<T, W> held1{}, held2{};
  if (holds) {
    held1 = load_pack<W>(x + own.first);
    held2 = load_pack<W>(x + own.second);
  }

  std::int64_t position = 0;
  if (active && s.rotate) {
    position = a.positions[token * a.positions_stride];
    if (position < 0 || position >= a.max_position) {
      if (lane == 0) note_fault(a.fault, TableFault::positions, token, position, a.max_position);
      active = false;
    }
  }
  float inverse = 1;
  if (a.has_norm) {
    float squares = 0;
    if constexpr (kHeld) {
      float v[W];
      widen(held1, v);
      squares = squares_of(v);
      widen(held2, v);
      squares += squares_of(v);
    } else if (active && s.norm_weight) {
      for (int i = lane * W; i < a.head_dim; i += kLanes * W) {
        float v[W];
        load(x + i, v);
        squares += squares_of(v);
      }
    }
    squares = lanes_reduce<Sum>(squares, kLanes);
    inverse = inverse_deviation(squares, a.head_dim, a.norm_eps);
  }
  if (!active) return;

  const float* const cos = a.cos + position * a.cos_stride;
  const float* const sin = a.sin + position * a.sin_stride;
  const auto turn = [&](const Pair& p, int i, float(&v1)[W], float(&v2)[W]) {
    if (s.norm_weight) {
      normalise(a, s, inverse, p.first, v1);
      normalise(a, s, inverse, p.second, v2);
    }
    if (s.rotate) rotate(a, cos, sin, i, v1, v2);
  };
  const auto to_place = [&](auto* to) {
    if (to == nullptr) return;
    float v1[W], v2[W];
    if constexpr (kHeld) {
      if (!holds) return;
      widen(held1, v1);
      widen(held2, v2);
      turn(own, lane * W, v1, v2);
      store(to + own.first, v1);
      store(to + own.second, v2);
      return;
    }
    const int rotated = s.rotate ? 2 * a.half : 0;
    for (int i = lane * W; 2 * i < rotated; i += kLanes * W) {
      const Pair p = pair_at(a, i, a.half, W);
      load(x + p.first, v1);
      load(x + p.second, v2);
      turn(p, i, v1, v2);
      store(to + p.first, v1);
      store(to + p.second, v2);
    }
    for (int i = rotated + lane * W; i < a.head_dim; i += kLanes * W) {
      load(x + i, v1);
      if (s.norm_weight) normalise(a, s, inverse, i, v1);
      store(to + i, v1);
    }
  };
  if (s.to.page_size > 0) {
    to_place(head_at<Cache>(a, s, token, head, lane == 0));
  } else {
    to_place(head_at<T>(a, s, token, head, false));
  }
}

Stream stream_of(const TensorView& x, bool rotate, const TensorView& norm_weight) {
  Stream s{};
  s.x = x.data;
  s.token_stride = x.stride(0);
  s.head_stride = x.stride(1);
  s.num_heads = static_cast<int>(x.dim(1));
  s.rotate = rotate;
  s.norm_weight = data_or_null(norm_weight);
  s.norm_weight_dtype = norm_weight.dtype;
  return s;
}

Place place_in(const TensorView& t) { return {t.data, t.stride(0), t.stride(1), 0, 0, 0, 0}; }
Place place_in_cache(const TensorView& cache, KvLayout layout) {
  const int row_axis = layout == KvLayout::hnd ? 2 : 1, head_axis = layout == KvLayout::hnd ? 1 : 2;
  return {cache.data,
          0,
          cache.stride(head_axis),
          cache.dim(row_axis),
          cache.dim(0),
          cache.stride(0),
          cache.stride(row_axis)};
}

struct Tables {
  TensorView positions, cos, sin, slot_mapping;
};

void set_tables(RopeArgs& a, const Tables& t) {
  if (t.positions.present()) {
    a.positions = t.positions.as<std::int32_t>();
    a.positions_stride = t.positions.stride(0);
    a.max_position = t.cos.dim(0);
    a.half = static_cast<int>(t.cos.dim(1));
    a.cos = t.cos.as<float>();
    a.sin = t.sin.as<float>();
    a.cos_stride = t.cos.stride(0);
    a.sin_stride = t.sin.stride(0);
  }
  if (t.slot_mapping.present()) {
    a.slots = t.slot_mapping.data;
    a.slots_stride = t.slot_mapping.stride(0);
    a.slots_are_64_bit = t.slot_mapping.dtype == DType::i64;
  }
}

// `tensors`: all that are read or written in vectors.
void run_heads(RopeArgs a, std::int64_t num_tokens, std::int64_t head_dim, DType dtype, DType cache_dtype,
               std::initializer_list<const TensorView*> tensors, const Launch& launch) {
  a.num_tokens = num_tokens;
  a.head_dim = static_cast<int>(head_dim);
  for (const Stream& s : a.streams) {
    a.heads_a_token += s.num_heads;
    a.has_norm |= s.norm_weight != nullptr;
  }
  a.fault = launch.fault();
  const std::int64_t jobs = num_tokens * a.heads_a_token;
  if (jobs == 0 || head_dim == 0) return;
  with_activation_type(dtype, [&]<class T>(std::type_identity<T>) {
    with_activation_type(cache_dtype, [&]<class Cache>(std::type_identity<Cache>) {
      constexpr int kWide = std::min(kVectorWidth<T>, kVectorWidth<Cache>);
      const bool wide =
          a.half % kWide == 0 && std::all_of(tensors.begin(), tensors.end(),
                                             [&](const TensorView* t) { return aligned_rows(*t, kWide); });
      const bool whole = a.half == 0 || 2 * a.half == head_dim;
      const auto go = [&]<int W, int kLanes, bool kHeld>() {
        launch(rope_kernel<T, Cache, W, kLanes, kHeld>,
               dim3(static_cast<unsigned>((jobs * kLanes + kThreads - 1) / kThreads)), dim3(kThreads), 0, a);
      };
      const std::int64_t vectors = (head_dim / 2 + kWide - 1) / kWide;  // of half a head
      if (!wide) {
        go.template operator()<1, 32, false>();
      } else if (!whole || vectors > 32 || head_dim / 2 % kWide != 0) {
        go.template operator()<kWide, 8, false>();
      } else if (vectors <= 4) {
        go.template operator()<kWide, 4, true>();
      } else if (vectors <= 8) {
        go.template operator()<kWide, 8, true>();
      } else if (vectors <= 16) {
        go.template operator()<kWide, 16, true>();
      } else {
        go.template operator()<kWide, 32, true>();
      }
    });
  });
}

}  // namespace

Support rope_supports(const RopeParams& p, const PlanContext&) {
  return heads_fit(p.x.dim(0), p.x.dim(1), p.x.dim(2));
}
Support rope_plain_supports(const RopeParams& p, const PlanContext& ctx) {
  if (p.norm_weight.present()) return Support::no("norm_weight given: this kernel takes none");
  return rope_supports(p, ctx);
}
void rope_run(const RopeParams& p, const RunContext& ctx) {
  RopeArgs a{};
  a.streams[0] = stream_of(p.x, true, p.norm_weight);
  a.streams[0].to = place_in(p.out);
  a.interleaved = p.interleaved;
  a.norm_eps = p.norm_eps;
  a.norm_weight_offset = p.norm_weight_offset;
  set_tables(a, {p.positions, p.cos, p.sin, {}});
  run_heads(a, p.x.dim(0), p.x.dim(2), p.x.dtype, p.x.dtype, {&p.x, &p.out, &p.norm_weight, &p.cos, &p.sin},
            Launch(p.out, ctx));
}

Support append_kv_supports(const AppendKvParams& p, const PlanContext&) {
  return heads_fit(p.k.dim(0), 2 * p.k.dim(1), p.k.dim(2));
}
void append_kv_run(const AppendKvParams& p, const RunContext& ctx) {
  RopeArgs a{};
  a.streams[1] = stream_of(p.k, false, {});
  a.streams[1].to = place_in_cache(p.k_cache, p.kv_layout);
  a.streams[2] = stream_of(p.v, false, {});
  a.streams[2].to = place_in_cache(p.v_cache, p.kv_layout);
  set_tables(a, {{}, {}, {}, p.slot_mapping});
  run_heads(a, p.k.dim(0), p.k.dim(2), p.k.dtype, p.k_cache.dtype, {&p.k, &p.v, &p.k_cache, &p.v_cache},
            Launch(p.k_cache, ctx));
}

Support rope_append_supports(const RopeAppendParams& p, const PlanContext&) {
  return heads_fit(p.q.dim(0), p.q.dim(1) + 2 * p.k.dim(1), p.q.dim(2));
}
void rope_append_run(const RopeAppendParams& p, const RunContext& ctx) {
  RopeArgs a{};
  a.streams[0] = stream_of(p.q, true, p.q_norm_weight);
  a.streams[0].to = place_in(p.q_out);
  a.streams[1] = stream_of(p.k, true, p.k_norm_weight);
  a.streams[1].to = place_in_cache(p.k_cache, p.kv_layout);
  a.streams[2] = stream_of(p.v, false, {});
  a.streams[2].to = place_in_cache(p.v_cache, p.kv_layout);
  a.interleaved = p.interleaved;
  a.norm_eps = p.norm_eps;
  a.norm_weight_offset = p.norm_weight_offset;
  set_tables(a, {p.positions, p.cos, p.sin, p.slot_mapping});
  run_heads(a, p.q.dim(0), p.q.dim(2), p.q.dtype, p.k_cache.dtype,
            {&p.q, &p.k, &p.v, &p.q_out, &p.k_cache, &p.v_cache, &p.q_norm_weight, &p.k_norm_weight, &p.cos,
             &p.sin},
            Launch(p.q_out, ctx));
}

}  // namespace kf::cuda
