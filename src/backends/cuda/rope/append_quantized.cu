// Keys and values of new tokens into quantized caches. A block has a token's keys or its values: it turns the heads to shared
// memory in f32, and then rounds them, a warp all that share a scale.

#include "backends/cuda/rope/append_quantized.h"

#include "backends/cuda/device/codes.cuh"
#include "backends/cuda/device/element.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"

namespace kf::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

__device__ std::int64_t place(const CachePlace& p, std::int64_t page, std::int64_t row, int head) {
  return page * p.page_stride + row * p.row_stride + head * p.head_stride;
}

// How the values that share a scale become codes.
struct Rounding {
  DType dtype;
  float scale, zero, lowest, highest;

  __device__ std::uint8_t code(float x) const {
    return code_of(dtype, scale != 0 ? x / scale : 0.0f, zero, lowest, highest);
  }
};

__global__ void __launch_bounds__(kThreads) append_quantized_kernel(const AppendQuantizedArgs args) {
  const AppendQuantizedArgs& a = first_argument(args);
  float* const heads = dynamic_shared<float>();  // [num_heads, head_dim]
  wait_for_predecessor();
  const std::int64_t token = blockIdx.x / 2;
  const HeadsSource& from = a.from[blockIdx.x % 2];
  const QuantizedCache& to = a.to[blockIdx.x % 2];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t slot = a.slots_are_64_bit
                                ? static_cast<const std::int64_t*>(a.slots)[token * a.slots_stride]
                                : static_cast<const std::int32_t*>(a.slots)[token * a.slots_stride];
  if (slot < 0) return;
  if (slot >= to.num_pages * to.page_size) {
    if (threadIdx.x == 0)
      note_fault(a.fault, TableFault::slot_mapping, token, slot, to.num_pages * to.page_size);
    return;
  }
  std::int64_t position = 0;
  if (from.rotate) {
    position = a.positions[token * a.positions_stride];
    if (position < 0 || position >= a.max_position) {
      if (threadIdx.x == 0) note_fault(a.fault, TableFault::positions, token, position, a.max_position);
      return;
    }
  }
  for (int head = warp; head < a.num_heads; head += kWarps) {
    float* const turned = heads + head * a.head_dim;
    const std::int64_t begin = token * from.token_stride + head * from.head_stride;
    float squares = 0;
    for (int i = lane; i < a.head_dim; i += kWarp) {
      float v[1];
      load_any(a.dtype, from.x, begin + i, v);
      turned[i] = v[0];
      squares += v[0] * v[0];
    }
    if (from.norm_weight) {
      const float inverse = inverse_deviation(lanes_reduce<Sum>(squares, kWarp), a.head_dim, a.norm_eps);
      for (int i = lane; i < a.head_dim; i += kWarp) {
        float w[1];
        load_any(from.norm_weight_dtype, from.norm_weight, i, w);
        turned[i] *= inverse * (a.norm_weight_offset + w[0]);
      }
    }
    sync_warp();
    if (!from.rotate) continue;
    for (int i = lane; i < a.half; i += kWarp) {
      const float c = a.cos[position * a.cos_stride + i], s = a.sin[position * a.sin_stride + i];
      float &x1 = turned[a.interleaved ? 2 * i : i], &x2 = turned[a.interleaved ? 2 * i + 1 : a.half + i];
      const float y1 = x1 * c - x2 * s;
      x2 = x2 * c + x1 * s;
      x1 = y1;
    }
  }
  __syncthreads();

  const std::int64_t page = slot / to.page_size, row = slot % to.page_size;
  const int groups = a.head_dim / to.group;
  const int sharing = to.heads_share ? a.num_heads : 1;  // heads of a scale
  const bool is_int4 = to.dtype == DType::int4, is_integer = is_int4 || to.dtype == DType::i8;
  Rounding r{to.dtype, 0, 0, is_int4 ? -8.0f : -128.0f, is_int4 ? 7.0f : 127.0f};
  const float largest = is_integer ? r.highest : largest_code(to.dtype);
  for (int unit = warp; unit < a.num_heads / sharing * groups; unit += kWarps) {
    const int first = unit / groups * sharing, group = unit % groups;
    const std::int64_t scale_at = place(to.scales_at, page, row, first) + group;
    const std::int64_t zero_at = place(to.zeros_at, page, row, first) + group;
    const int count = sharing * to.group;
    const auto value = [&](int i) {
      return heads[(first + i / to.group) * a.head_dim + group * to.group + i % to.group];
    };
    if (to.computes_scales) {
      float low = 0, high = 0;
      for (int i = lane; i < count; i += kWarp)
        if (const float v = value(i); isfinite(v)) {
          low = fminf(low, v);
          high = fmaxf(high, v);
        }
      low = -lanes_reduce<Max>(-low, kWarp);
      high = lanes_reduce<Max>(high, kWarp);
      // Halves first: the difference of the ends may be more than the largest float.
      const float wanted =
          to.zeros ? (high / 2 - low / 2) / (r.highest - r.lowest) * 2 : fmaxf(high, -low) / largest;
      if (lane == 0) store_any(to.scales_dtype, to.scales, scale_at, wanted);
      sync_warp();
      float stored[1];
      load_any(to.scales_dtype, to.scales, scale_at, stored);
      r.scale = stored[0];
      if (to.zeros) {
        const float zero = rintf(r.lowest - (r.scale != 0 ? low / r.scale : 0.0f));
        r.zero = fminf(fmaxf(zero, r.lowest), r.highest);
        if (lane == 0) to.zeros[zero_at] = static_cast<std::int8_t>(r.zero);
      }
    } else {
      float stored[1];
      load_any(to.scales_dtype, to.scales, scale_at, stored);
      r.scale = stored[0];
      r.zero = to.zeros ? static_cast<float>(to.zeros[zero_at]) : 0.0f;
    }
    const int step = is_int4 ? 2 : 1;
    for (int i = lane * step; i < count; i += kWarp * step) {
      const std::int64_t at =
          place(to.data_at, page, row, first + i / to.group) + group * to.group + i % to.group;
      if (is_int4) {
        to.data[at / 2] =
            static_cast<std::uint8_t>((r.code(value(i)) & 15) | (r.code(value(i + 1)) & 15) << 4);
      } else {
        to.data[at] = r.code(value(i));
      }
    }
  }
}

}  // namespace

void launch_append_quantized(const AppendQuantizedArgs& a, std::int64_t num_tokens, const TensorView& on,
                             const RunContext& ctx) {
  AppendQuantizedArgs args = a;
  const Launch launch(on, ctx);
  args.fault = launch.fault();
  launch(append_quantized_kernel, dim3(static_cast<unsigned>(2 * num_tokens)), dim3(kThreads),
         sizeof(float) * static_cast<std::size_t>(a.num_heads * a.head_dim), args);
}

}  // namespace kf::cuda
