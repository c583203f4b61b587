#include "core/sparse.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/fork.h"
#include "core/half.h"
#include "core/operands.h"
#include "core/quantized.h"
#include "kf/sparsify.h"

namespace kf {
namespace {

bool last_contiguous(const TensorView& t) { return t.dim(-1) <= 1 || t.stride(-1) == 1; }

bool is_power(std::int64_t m) { return m == 2 || m == 4 || m == 8 || m == 16 || m == 32; }

std::int64_t mask_bytes(std::int64_t in) { return in / 8 + (in % 8 != 0); }

bool is_value_dtype(DType t) { return is_activation_dtype(t) || needs_scales(t); }

void check_pattern(const char* op, const std::string& name, std::int64_t n, std::int64_t m, std::int64_t in) {
  if (!is_power(m) || n < 1 || n >= m)
    fail_operand(op, name + "_n", "n of m neighbours, m 2, 4, 8, 16 or 32 and 1 <= n < m",
                 fmt::format("{}:{}", n, m));
  if (in % m != 0)
    fail_operand(op, name, fmt::format("columns that are a multiple of m, {}", m), std::to_string(in));
}

void check_mask(const char* op, const std::string& name, const TensorView& mask, std::int64_t in) {
  if (mask.dtype != DType::u8) fail_operand(op, name, "u8", dtype_name(mask.dtype));
  if (mask.rank != 2 || mask.dim(1) != mask_bytes(in))
    fail_operand(op, name, fmt::format("shape [out, {}], a bit for each of {} columns", mask_bytes(in), in),
                 shape_string(mask));
  if (!last_contiguous(mask)) fail_operand(op, name, "contiguous rows", to_string(mask));
}

const std::uint8_t* mask_row(const TensorView& mask, std::int64_t row) {
  return mask.as<const std::uint8_t>() + row * mask.stride(0);
}

bool is_kept(const std::uint8_t* row, std::int64_t k) { return row[k / 8] >> (k % 8) & 1; }
void keep(const TensorView& mask, std::int64_t row, std::int64_t k) {
  mask.as<std::uint8_t>()[row * mask.stride(0) + k / 8] |= static_cast<std::uint8_t>(1 << k % 8);
}

std::int64_t count_kept(const TensorView& mask, std::int64_t row, std::int64_t end) {
  std::int64_t count = 0;
  for (std::int64_t k = 0; k < end; k += 32)
    count += std::popcount(mask_bits(mask_row(mask, row), mask.dim(1), k));
  return count;
}

void clear(const TensorView& mask) {
  for (std::int64_t row = 0; row < mask.dim(0); ++row)
    std::fill_n(mask.as<std::uint8_t>() + row * mask.stride(0), mask.dim(1), std::uint8_t{0});
}

// What an element counts when the largest are kept: a NaN more than all.
float magnitude(const TensorView& t, std::int64_t row, std::int64_t k) {
  const float x = std::abs(read_element(t, row * t.stride(0) + k));
  return std::isnan(x) ? std::numeric_limits<float>::infinity() : x;
}

void check_on_host(const char* op, const char* name, const TensorView& t) {
  if (!t.present()) return;
  if (t.device != Device{}) fail_operand(op, name, "a tensor on cpu:0", "one on " + to_string(t.device));
  check_memory(op, name, t);
}

void check_dense(const char* op, const TensorView& dense, bool codes) {
  if (dense.rank != 2) fail_operand(op, "dense", "2 dimensions", shape_string(dense));
  if (!(codes ? is_value_dtype(dense.dtype) : is_activation_dtype(dense.dtype)))
    fail_operand(op, "dense", codes ? "f32, f16, bf16, int4, i8, fp8_e4m3 or fp8_e5m2" : "f32, f16 or bf16",
                 dtype_name(dense.dtype));
  if (!last_contiguous(dense)) fail_operand(op, "dense", "contiguous rows", to_string(dense));
  check_on_host(op, "dense", dense);
}

void check_choice(const char* op, const TensorView& dense, const TensorView& mask) {
  check_dense(op, dense, false);
  check_mask(op, "mask", mask, dense.dim(1));
  if (mask.dim(0) != dense.dim(0))
    fail_operand(op, "mask", fmt::format("{} rows, as dense has", dense.dim(0)), shape_string(mask));
  check_on_host(op, "mask", mask);
}

// The codes of a weight, copied one by one.
void copy_code(const TensorView& from, std::int64_t at, const TensorView& to, std::int64_t to_at) {
  if (from.dtype == DType::int4) {
    const int nibble = from.as<std::uint8_t>()[at / 2] >> (at % 2 * 4) & 15;
    std::uint8_t& byte = to.as<std::uint8_t>()[to_at / 2];
    byte = static_cast<std::uint8_t>(to_at % 2 == 0 ? (byte & 0xF0) | nibble : (byte & 0x0F) | nibble << 4);
    return;
  }
  const auto bytes = static_cast<std::size_t>(dtype_info(from.dtype).block_bytes);
  std::memcpy(to.as<char>() + static_cast<std::size_t>(to_at) * bytes,
              from.as<char>() + static_cast<std::size_t>(at) * bytes, bytes);
}

void check_on_host(const char* op, const TensorView& values, const Sparsity& s) {
  check_on_host(op, "values", values);
  check_on_host(op, "mask", s.mask);
  check_on_host(op, "offsets", s.offsets);
}

}  // namespace

void check_sparsity(const char* op, const char* name, const TensorView& values, const Sparsity& s,
                    std::int64_t in) {
  const std::string operand = name;
  if (!s.present()) {
    if (s.offsets.present())
      fail_operand(op, operand + "_offsets", fmt::format("none, since {} has no mask", name),
                   to_string(s.offsets));
    if (s.n != 0 || s.m != 0)
      fail_operand(op, operand + "_n", fmt::format("0, since {} has no mask", name),
                   fmt::format("{}:{}", s.n, s.m));
    return;
  }
  check_mask(op, operand + "_mask", s.mask, in);
  if (!is_value_dtype(values.dtype))
    fail_operand(op, name, "values of f32, f16, bf16, int4, i8, fp8_e4m3 or fp8_e5m2 for a sparse weight",
                 dtype_name(values.dtype));
  const std::int64_t rows = s.mask.dim(0);
  if (s.n == 0 && s.m == 0) {
    if (!s.offsets.present())
      fail_operand(op, operand + "_offsets", "offsets of the rows, since the weight is unstructured", "none");
    if (s.offsets.dtype != DType::i64)
      fail_operand(op, operand + "_offsets", "i64", dtype_name(s.offsets.dtype));
    if (s.offsets.rank != 1 || s.offsets.dim(0) != rows + 1)
      fail_operand(op, operand + "_offsets", fmt::format("shape [{}], one more than rows", rows + 1),
                   shape_string(s.offsets));
    if (values.rank != 1 || !last_contiguous(values))
      fail_operand(op, name, "one dimension of values, contiguous, for an unstructured sparse weight",
                   to_string(values));
    return;
  }
  check_pattern(op, operand, s.n, s.m, in);
  if (s.offsets.present())
    fail_operand(op, operand + "_offsets", fmt::format("none, since {} is {}:{}", name, s.n, s.m),
                 to_string(s.offsets));
  if (values.rank != 2 || values.dim(0) != rows || values.dim(1) != in / s.m * s.n)
    fail_operand(op, name,
                 fmt::format("shape [{}, {}], the values of {} columns, {} of every {}", rows, in / s.m * s.n,
                             in, s.n, s.m),
                 shape_string(values));
  if (!last_contiguous(values) || (rows > 1 && values.stride(0) < 0))
    fail_operand(op, name, "contiguous rows one after another for a sparse weight", to_string(values));
}

void check_offsets(const char* op, const char* name, const TensorView& values, const Sparsity& s) {
  if (!s.present() || s.m != 0 || s.offsets.device.type != DeviceType::cpu) return;
  const auto* const offsets = s.offsets.as<const std::int64_t>();
  const std::int64_t rows = s.mask.dim(0), stride = s.offsets.stride(0), end = offsets[rows * stride];
  // An odd number of int4 ends within a byte, which a tensor has whole.
  const std::int64_t whole = values.dtype == DType::int4 ? end + end % 2 : end;
  bool ascend = offsets[0] == 0 && (values.dim(0) == end || values.dim(0) == whole);
  for (std::int64_t row = 0; row < rows; ++row)
    ascend = ascend && offsets[row * stride] <= offsets[(row + 1) * stride];
  if (ascend) return;
  const auto problem = [&]() -> std::string {
    for (std::int64_t row = 0; row < rows; ++row)
      if (offsets[row * stride] > offsets[(row + 1) * stride])
        return fmt::format("{} and then {} at row {}", offsets[row * stride], offsets[(row + 1) * stride],
                           row);
    return fmt::format("{} to {}", offsets[0], offsets[rows * stride]);
  };
  fail_operand(op, std::string(name) + "_offsets",
               fmt::format("offsets that ascend from 0 to {}, the number of values", values.dim(0)),
               problem());
}

std::int64_t values_before(const TensorView& layout, const Sparsity& s, std::int64_t row, std::int64_t k) {
  return first_value(layout, s, row) + (s.m == 0 ? count_kept(s.mask, row, k) : k / s.m * s.n);
}

void expand_row(const TensorView& layout, const Quantization& q, const Sparsity& s, std::int64_t row,
                float* to) {
  const std::int64_t end = end_of_values(layout, s);
  const bool scaled = needs_scales(layout.dtype);
  const ScaleGrid grid = scaled ? scale_grid(layout, q) : ScaleGrid{};
  std::int64_t at = first_value(layout, s, row);
  for (std::int64_t k = 0; k < layout.dim(1); ++k) {
    to[k] = 0;
    if (!is_kept(mask_row(s.mask, row), k)) continue;
    const float code = at < end ? read_element(layout, at) : 0.0f;
    const std::int64_t group = k / grid.columns;
    to[k] = scaled ? (code - zero_at(q, grid, row, group)) * scale_at(q, grid, row, group) : code;
    ++at;
  }
}

std::int64_t choose_n_of_m(const TensorView& dense, std::int64_t n, std::int64_t m, const TensorView& mask) {
  check_choice("sparsify", dense, mask);
  check_pattern("sparsify", "dense", n, m, dense.dim(1));
  clear(mask);
#pragma omp parallel for
  for (std::int64_t row = 0; row < dense.dim(0); ++row)
    for (std::int64_t k = 0; k < dense.dim(1); k += m) {
      std::int64_t order[32];
      for (std::int64_t i = 0; i < m; ++i) order[i] = k + i;
      std::stable_sort(order, order + m, [&](std::int64_t a, std::int64_t b) {
        return magnitude(dense, row, a) > magnitude(dense, row, b);
      });
      for (std::int64_t i = 0; i < n; ++i) keep(mask, row, order[i]);
    }
  return dense.dim(0) * (dense.dim(1) / m) * n;
}

std::int64_t choose_largest(const TensorView& dense, double sparsity, const TensorView& mask) {
  check_choice("sparsify", dense, mask);
  if (!(sparsity >= 0.0 && sparsity <= 1.0))
    fail_operand("sparsify", "sparsity", "a share of 0 to 1", fmt::format("{}", sparsity));
  clear(mask);
  const std::int64_t rows = dense.dim(0), in = dense.dim(1), total = rows * in;
  // The least that is kept, and how many of just that magnitude.
  float least = std::numeric_limits<float>::denorm_min();
  std::int64_t of_least = total;
  if (const auto dropped = static_cast<std::int64_t>(sparsity * static_cast<double>(total));
      dropped == total) {
    return 0;
  } else if (dropped > 0) {
    std::vector<float> sizes(static_cast<std::size_t>(total));
    for (std::int64_t i = 0; i < total; ++i)
      sizes[static_cast<std::size_t>(i)] = magnitude(dense, i / in, i % in);
    const auto edge = sizes.begin() + dropped;
    std::nth_element(sizes.begin(), edge, sizes.end());
    if (*edge > 0) {
      least = *edge;
      of_least = std::count(edge, sizes.end(), least);
    }
  }
  std::int64_t kept = 0;
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t k = 0; k < in; ++k) {
      const float size = magnitude(dense, row, k);
      if (size < least || (size == least && of_least-- <= 0)) continue;
      keep(mask, row, k);
      ++kept;
    }
  return kept;
}

void pack_values(const TensorView& dense, const TensorView& values, const Sparsity& s) {
  const char* op = "sparsify";
  check_dense(op, dense, true);
  check_sparsity(op, "values", values, s, dense.dim(1));
  if (!s.present()) fail_operand(op, "values_mask", "a mask", "none");
  if (values.dtype != dense.dtype)
    fail_operand(op, "values", std::string("the dtype of dense, ") + dtype_name(dense.dtype),
                 dtype_name(values.dtype));
  check_on_host(op, values, s);
  const std::int64_t rows = dense.dim(0);
  if (s.m == 0) {
    auto* const offsets = s.offsets.as<std::int64_t>();
    offsets[0] = 0;
    for (std::int64_t row = 0; row < rows; ++row)
      offsets[(row + 1) * s.offsets.stride(0)] =
          offsets[row * s.offsets.stride(0)] + count_kept(s.mask, row, dense.dim(1));
  }
  check_sparse(values, s, dense.dim(1));
  const TensorView layout = dense_layout(values, s, dense.dim(1));
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t at = first_value(layout, s, row);
    for (std::int64_t k = 0; k < dense.dim(1); ++k)
      if (is_kept(mask_row(s.mask, row), k)) copy_code(dense, row * dense.stride(0) + k, values, at++);
  }
}

SparseWeight sparsify(const TensorView& dense, std::int64_t n, std::int64_t m) {
  check_dense("sparsify", dense, false);
  check_pattern("sparsify", "dense", n, m, dense.dim(1));
  SparseWeight w;
  w.n = n;
  w.m = m;
  w.mask = Tensor(DType::u8, {dense.dim(0), mask_bytes(dense.dim(1))});
  w.values = Tensor(dense.dtype, {dense.dim(0), dense.dim(1) / m * n});
  choose_n_of_m(dense, n, m, w.mask);
  pack_values(dense, w.values, w.sparsity());
  return w;
}

SparseWeight sparsify_unstructured(const TensorView& dense, double sparsity) {
  check_dense("sparsify", dense, false);
  SparseWeight w;
  w.mask = Tensor(DType::u8, {dense.dim(0), mask_bytes(dense.dim(1))});
  w.offsets = Tensor(DType::i64, {dense.dim(0) + 1});
  w.values = Tensor(dense.dtype, {choose_largest(dense, sparsity, w.mask)});
  pack_values(dense, w.values, w.sparsity());
  return w;
}

void densify(const TensorView& values, const Quantization& q, const Sparsity& s, const TensorView& dense) {
  const char* op = "densify";
  check_dense(op, dense, false);
  if (!s.present()) fail_operand(op, "values_mask", "a mask", "none");
  check_sparsity(op, "values", values, s, dense.dim(1));
  if (s.mask.dim(0) != dense.dim(0))
    fail_operand(op, "dense", fmt::format("{} rows, as the mask has", s.mask.dim(0)), shape_string(dense));
  check_on_host(op, values, s);
  check_offsets(op, "values", values, s);
  const TensorView layout = dense_layout(values, s, dense.dim(1));
  check_quantization(op, "values", layout, q);
  check_on_host(op, "values_scales", q.scales);
  check_on_host(op, "values_zeros", q.zeros);
#pragma omp parallel for
  for (std::int64_t row = 0; row < dense.dim(0); ++row) {
    std::vector<float> x(static_cast<std::size_t>(dense.dim(1)));
    expand_row(layout, q, s, row, x.data());
    with_activation_type(dense.dtype, [&]<class T>(std::type_identity<T>) {
      T* const to = dense.as<T>() + row * dense.stride(0);
      for (std::size_t k = 0; k < x.size(); ++k) to[k] = from_f32<T>(x[k]);
    });
  }
}

void check_sparse(const TensorView& values, const Sparsity& s, std::int64_t in) {
  const char* op = "check_sparse";
  if (!s.present()) fail_operand(op, "values_mask", "a mask", "none");
  check_sparsity(op, "values", values, s, in);
  check_on_host(op, values, s);
  check_offsets(op, "values", values, s);
  const auto fail_row = [&](std::int64_t row, const std::string& expected, std::int64_t got) {
    fail_operand(op, "values_mask", fmt::format("{} in row {}", expected, row), std::to_string(got));
  };
  const TensorView layout = dense_layout(values, s, in);
  for (std::int64_t row = 0; row < s.mask.dim(0); ++row) {
    const std::uint8_t* const bits = mask_row(s.mask, row);
    if (in % 8 != 0 && bits[in / 8] >> (in % 8) != 0)
      fail_row(row, fmt::format("no bit behind column {}", in - 1), bits[in / 8]);
    if (s.m == 0) {
      const std::int64_t wanted = first_value(layout, s, row + 1) - first_value(layout, s, row);
      if (const std::int64_t count = count_kept(s.mask, row, in); count != wanted)
        fail_row(row, fmt::format("{} bits, as offsets say,", wanted), count);
      continue;
    }
    const std::uint32_t group = s.m == 32 ? ~0u : (1u << s.m) - 1;
    for (std::int64_t k = 0; k < in; k += 32) {
      const std::uint32_t word = mask_bits(bits, s.mask.dim(1), k);
      for (std::int64_t i = 0; i < 32 && k + i < in; i += s.m)
        if (const int count = std::popcount(word >> i & group); count != s.n)
          fail_row(row, fmt::format("{} bits for every {} columns, so from column {} on,", s.n, s.m, k + i),
                   count);
    }
  }
}

}  // namespace kf
