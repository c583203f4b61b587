#include "backends/cpu/reference/elementwise.h"

#include <algorithm>
#include <limits>

#include "backends/cpu/reference/scalar.h"
#include "backends/cpu/rows.h"

namespace kf::cpu::reference {
namespace {

// Element offsets of `t`, all of its dimensions counted as rows.
RowOffsets elements(const TensorView& t) { return RowOffsets(t, 0); }

// out[row, i] = y(flat index), in the dtype of `out`.
template <class Y>
void write_rows(const TensorView& out, const OutputQuantization& q, const Y& y) {
  const RowOffsets rows(out), scale_rows(q.scales, 0);
  const std::int64_t n = out.dim(-1);
  for (std::int64_t row = 0; row < num_rows(out); ++row)
    write_row(out, q, rows(row), out.stride(-1), scale_rows(row), n,
              [&](std::int64_t i) { return y(row * n + i); });
}

}  // namespace

void binary(const BinaryParams& p, const RunContext&) {
  const RowOffsets a_at = elements(p.a), b_at = elements(p.b), out_at = elements(p.out);
  for (std::int64_t i = 0; i < p.out.numel(); ++i) {
    const double a = read(p.a, a_at(i)), b = read(p.b, b_at(i));
    write(p.out, out_at(i), p.kind == BinaryKind::add ? a + b : a * b);
  }
}

void activation(const ActivationParams& p, const RunContext&) {
  const RowOffsets x_at = elements(p.x);
  write_rows(p.out, p.quantization, [&](std::int64_t i) { return activate(p.kind, read(p.x, x_at(i))); });
}

void gated_activation(const GatedActivationParams& p, const RunContext&) {
  const RowOffsets gate_at = elements(p.gate), up_at = elements(p.up);
  write_rows(p.out, p.quantization, [&](std::int64_t i) {
    return activate(p.kind, read(p.gate, gate_at(i))) * read(p.up, up_at(i));
  });
}

void softmax(const SoftmaxParams& p, const RunContext&) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const std::int64_t n = p.x.dim(-1);
  const TensorView mask = p.mask.present() ? broadcast_to(p.mask, p.x) : TensorView();
  const RowOffsets x_rows(p.x), out_rows(p.out), lse_at(p.lse, 0), mask_rows(mask);
  for (std::int64_t row = 0; row < num_rows(p.x); ++row) {
    const auto scaled = [&](std::int64_t i) {
      const double z = p.scale * read(p.x, x_rows(row) + i * p.x.stride(-1));
      if (!mask.present()) return z;
      const double m = read(mask, mask_rows(row) + i * mask.stride(-1));
      return mask.dtype == DType::boolean ? (m != 0 ? z : -kInfinity) : z + m;
    };
    double max = -kInfinity, sum = 0;
    for (std::int64_t i = 0; i < n; ++i) max = std::max(max, scaled(i));
    const double shift = max == -kInfinity ? 0 : max;
    for (std::int64_t i = 0; i < n; ++i) sum += std::exp(scaled(i) - shift);
    const double lse = shift + std::log(sum);
    for (std::int64_t i = 0; i < n; ++i)
      write(p.out, out_rows(row) + i * p.out.stride(-1), sum == 0 ? 0 : std::exp(scaled(i) - shift) / sum);
    if (p.lse.present()) write(p.lse, lse_at(row), lse);
  }
}

void dequantize(const DequantizeParams& p, const RunContext&) {
  for (std::int64_t row = 0; row < p.x.dim(0); ++row)
    for (std::int64_t i = 0; i < p.x.dim(1); ++i)
      write(p.out, row * p.out.stride(0) + i * p.out.stride(1),
            read(p.x, row * p.x.stride(0) + i * p.x.stride(1)));
}

void quantize(const QuantizeParams& p, const RunContext&) {
  const RowOffsets x_at = elements(p.x);
  write_rows(p.out, p.quantization, [&](std::int64_t i) { return read(p.x, x_at(i)); });
}

}  // namespace kf::cpu::reference
