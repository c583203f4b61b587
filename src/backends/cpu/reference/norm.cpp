#include "backends/cpu/reference/norm.h"

#include "backends/cpu/reference/scalar.h"
#include "backends/cpu/rows.h"

namespace kf::cpu::reference {
namespace {

// Both norms: `centred` takes the mean off first and adds the bias last.
template <class P>
void norm(const P& p, const TensorView& bias, double weight_offset, bool centred) {
  const std::int64_t n = p.x.dim(-1);
  const RowOffsets x_rows(p.x), residual_rows(p.residual), out_rows(p.out), residual_out_rows(p.residual_out),
      scale_rows(p.quantization.scales, 0);
  for (std::int64_t row = 0; row < num_rows(p.x); ++row) {
    const auto h = [&](std::int64_t i) {
      const double x = read(p.x, x_rows(row) + i * p.x.stride(-1));
      return p.residual.present() ? x + read(p.residual, residual_rows(row) + i * p.residual.stride(-1)) : x;
    };
    double sum = 0, squares = 0;
    if (centred)
      for (std::int64_t i = 0; i < n; ++i) sum += h(i);
    const double mean = sum / static_cast<double>(n);
    for (std::int64_t i = 0; i < n; ++i) squares += (h(i) - mean) * (h(i) - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(n) + static_cast<double>(p.eps));
    const auto normalised = [&](std::int64_t i) {
      const double sum_with_residual = h(i);
      double y =
          (sum_with_residual - mean) / deviation * (weight_offset + read(p.weight, i * p.weight.stride(0)));
      if (bias.present()) y += read(bias, i * bias.stride(0));
      if (p.residual_out.present())
        write(p.residual_out, residual_out_rows(row) + i * p.residual_out.stride(-1), sum_with_residual);
      return y;
    };
    write_row(p.out, p.quantization, out_rows(row), p.out.stride(-1), scale_rows(row), n, normalised);
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, const RunContext&) { norm(p, {}, p.weight_offset, /*centred=*/false); }
void layer_norm(const LayerNormParams& p, const RunContext&) { norm(p, p.bias, 0, /*centred=*/true); }

}  // namespace kf::cpu::reference
