// The kernel of ops that write their rows in 8 bits: the row is computed once for its largest magnitude, unless the scale is
// given, and once for the codes; a norm's sums come before. A row is read again for each pass, from the caches.
#pragma once

#include "backends/cuda/device/codes.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/math.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/supports.h"
#include "kf/ops/elementwise.h"

namespace kf::cuda {

enum class RowSource { plain, activation, gated, rms_norm, layer_norm };

struct QuantizedArgs {
  const void *x, *second;     // second: of gated activations up, of norms the residual; or null
  const void *weight, *bias;  // of norms; bias: or null
  void* residual_out;         // or null
  std::uint8_t* out;
  const float* static_scale;  // or null
  float* scales;              // or null
  RowOffsets x_rows, second_rows, residual_out_rows, out_rows, scales_at;
  DType weight_dtype, bias_dtype, codes;
  std::int64_t rows;
  int n;
  Activation kind;
  float eps, weight_offset;
};

template <RowSource kSource, class T, int W>
__global__ void __launch_bounds__(kMaxRowThreads) quantized_kernel(const QuantizedArgs args) {
  const QuantizedArgs& a = first_argument(args);
  constexpr bool kNorm = kSource == RowSource::rms_norm || kSource == RowSource::layer_norm;
  wait_for_predecessor();
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool active = row < a.rows;  // the others only take part in reductions
  const int n = active ? a.n : 0;
  const T* const x = static_cast<const T*>(a.x) + (active ? a.x_rows(row) : 0);
  const T* const second = static_cast<const T*>(a.second) + (active && a.second ? a.second_rows(row) : 0);
  // Calls f(i, h) for each vector of the row, with a residual added.
  const auto for_each_input = [&](const auto& f) {
    for_each_vector<0, W>(n, [&](int, int i) {
      float h[W];
      load(x + i, h);
      if constexpr (kNorm) {
        if (a.second) {
          float r[W];
          load(second + i, r);
#pragma unroll
          for (int k = 0; k < W; ++k) h[k] += r[k];
        }
      }
      f(i, h);
    });
  };
  Statistics statistics{0, 1};
  if constexpr (kNorm)
    statistics = row_statistics<false, W>(kSource == RowSource::layer_norm, a.n, a.eps, [&](const auto& f) {
      for_each_input([&](int, const float(&h)[W]) { f(h); });
    });
  // In place: what is quantized.
  const auto result = [&](int i, float(&h)[W]) {
    float other[W];
    if constexpr (kSource == RowSource::activation || kSource == RowSource::gated) activate<float>(a.kind, h);
    if constexpr (kSource == RowSource::gated) {
      load(second + i, other);
#pragma unroll
      for (int k = 0; k < W; ++k) h[k] *= other[k];
    }
    if constexpr (kNorm) {
      load_any(a.weight_dtype, a.weight, i, other);
      statistics.apply(h, a.weight_offset, other, h);
      if (kSource == RowSource::layer_norm && a.bias) {
        load_any(a.bias_dtype, a.bias, i, other);
#pragma unroll
        for (int k = 0; k < W; ++k) h[k] += other[k];
      }
    }
  };
  float scale;
  if (a.static_scale) {
    scale = *a.static_scale;
  } else {
    float largest = 0;
    for_each_input([&](int i, float(&h)[W]) {
      result(i, h);
#pragma unroll
      for (int k = 0; k < W; ++k)
        if (isfinite(h[k])) largest = fmaxf(largest, fabsf(h[k]));
    });
    scale = row_reduce<Max>(largest) / largest_code(a.codes);
  }
  if (!active) return;
  if (a.scales && threadIdx.x == 0) a.scales[a.scales_at(row)] = scale;
  const float divisor = scale == 0 ? 1.0f : scale;
  std::uint8_t* const out = a.out + a.out_rows(row);
  T* const residual_out =
      a.residual_out ? static_cast<T*>(a.residual_out) + a.residual_out_rows(row) : nullptr;
  for_each_input([&](int i, float(&h)[W]) {
    if (kNorm && residual_out) store(residual_out + i, h);
    result(i, h);
    Pack<std::uint8_t, W> codes;
#pragma unroll
    for (int k = 0; k < W; ++k) codes.e[k] = code_of(a.codes, h[k] / divisor);
    *reinterpret_cast<Pack<std::uint8_t, W>*>(out + i) = codes;
  });
}

template <RowSource kSource>
void run_rows(QuantizedArgs a, const TensorView& x, const TensorView& second, const TensorView& residual_out,
              const TensorView& weight, const TensorView& bias, const TensorView& out,
              const OutputQuantization& q, const RunContext& ctx) {
  a.rows = num_rows(x);
  a.n = static_cast<int>(x.dim(-1));
  if (a.rows == 0) return;
  a.x = x.data;
  a.second = data_or_null(second);
  a.residual_out = data_or_null(residual_out);
  a.out = out.as<std::uint8_t>();
  a.static_scale = static_cast<const float*>(data_or_null(q.static_scale));
  a.scales = static_cast<float*>(data_or_null(q.scales));
  a.x_rows = RowOffsets(x);
  a.second_rows = RowOffsets(second);
  a.residual_out_rows = RowOffsets(residual_out);
  a.out_rows = RowOffsets(out);
  a.scales_at = RowOffsets(q.scales, 0);
  a.codes = q.code_dtype();
  const Launch launch(out, ctx);
  with_vectors(x.dtype, {&x, &second, &residual_out, &weight, &bias, &out},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 const RowShape shape = row_shape(a.n, W);
                 launch(quantized_kernel<kSource, T, W>, shape.grid(a.rows), shape.block(), 0, a);
               });
}

inline Support supports_rows(const OutputQuantization& q, const TensorView& x) {
  if (!q.present()) return Support::no("out_dtype none: this kernel writes 8-bit codes");
  return rows_fit(x);
}

}  // namespace kf::cuda
