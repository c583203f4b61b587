#include "core/quantized.h"
#include "core/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/fork.h"
#include "core/half.h"
#include "core/operands.h"
#include "kf/quantize.h"

namespace kf {
namespace {

constexpr std::int64_t kBlockRows = 128;  // of fp8 that share a scale with groups of as many columns

bool is_fp8(DType t) { return t == DType::fp8_e4m3 || t == DType::fp8_e5m2; }

bool rows_contiguous(const TensorView& t) { return t.dim(1) <= 1 || t.stride(1) == 1; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

void check_absent(const char* op, const std::string& name, const TensorView& t, const TensorView& weight,
                  const char* weight_name) {
  if (t.present())
    fail_operand(op, name, fmt::format("none, since {} is {}", weight_name, dtype_name(weight.dtype)),
                 to_string(t));
}

// [rows, groups] of scales or zeros, once their group size is known to be good.
void check_shape(const char* op, const std::string& name, const TensorView& t, const TensorView& weight,
                 std::int64_t group_size) {
  const std::int64_t rows = weight.dim(0), groups = group_size == 0 ? 1 : ceil_div(weight.dim(1), group_size);
  std::string expected = fmt::format("[{}, {}]", rows, groups);
  bool fits = t.rank == 2 && t.dim(0) == rows && t.dim(1) == groups;
  if (is_fp8(weight.dtype) && (group_size == 0 || group_size == kBlockRows)) {
    const std::int64_t shared = group_size == 0 ? 1 : ceil_div(rows, kBlockRows);
    expected += fmt::format(" or [{}, {}]", shared, groups);
    fits = fits || (t.rank == 2 && t.dim(0) == shared && t.dim(1) == groups);
  }
  if (!fits)
    fail_operand(op, name,
                 fmt::format("shape {} for {} in groups of {}", expected, to_string(weight),
                             group_size == 0 ? "a row" : std::to_string(group_size)),
                 shape_string(t));
  if (!rows_contiguous(t)) fail_operand(op, name, "contiguous rows", to_string(t));
}

void write(const TensorView& t, std::int64_t offset, float value) {
  with_activation_type(t.dtype,
                       [&]<class T>(std::type_identity<T>) { t.as<T>()[offset] = from_f32<T>(value); });
}

void put(const TensorView& data, std::int64_t offset, float code) {
  if (data.dtype == DType::fp8_e4m3) {
    data.as<std::uint8_t>()[offset] = f32_to_fp8_e4m3(code);
  } else if (data.dtype == DType::fp8_e5m2) {
    data.as<std::uint8_t>()[offset] = f32_to_fp8_e5m2(code);
  } else if (data.dtype == DType::i8) {
    data.as<std::int8_t>()[offset] = static_cast<std::int8_t>(code);
  } else {
    std::uint8_t& byte = data.as<std::uint8_t>()[offset / 2];
    const int nibble = static_cast<int>(code) & 15;
    byte = static_cast<std::uint8_t>(offset % 2 == 0 ? (byte & 0xF0) | nibble : (byte & 0x0F) | nibble << 4);
  }
}

// The elements [row_begin, row_end) x [begin, end), which share a scale.
void quantize_group(const TensorView& values, const TensorView& data, const Quantization& q,
                    std::int64_t row_begin, std::int64_t row_end, std::int64_t begin, std::int64_t end,
                    std::int64_t scale_row, std::int64_t group) {
  QuantizationRange range;
  for (std::int64_t row = row_begin; row < row_end; ++row)
    for (std::int64_t k = begin; k < end; ++k) range.add(read_element(values, row * values.stride(0) + k));
  const std::int64_t scale_at = scale_row * q.scales.stride(0) + group,
                     zero_at = q.zeros.present() ? scale_row * q.zeros.stride(0) + group : 0;
  const Quantizer quantizer = Quantizer::store(data.dtype, range, q, scale_at, zero_at);
  for (std::int64_t row = row_begin; row < row_end; ++row)
    for (std::int64_t k = begin; k < end; ++k)
      quantizer.put(data, row * data.stride(0) + k, read_element(values, row * values.stride(0) + k));
}

// Where row `row` of a tensor of any rank begins, rows counted in row-major order.
std::int64_t row_offset(const TensorView& t, std::int64_t row) {
  std::int64_t offset = 0;
  for (int i = t.rank - 2; i >= 0; --i) {
    offset += row % t.shape[i] * t.strides[i];
    row /= t.shape[i];
  }
  return offset;
}

void check_pair(const char* op, const TensorView& values, const TensorView& data, const Quantization& q) {
  if (!is_activation_dtype(values.dtype))
    fail_operand(op, "values", "f32, f16 or bf16", dtype_name(values.dtype));
  if (!needs_scales(data.dtype))
    fail_operand(op, "data", "int4, i8, fp8_e4m3 or fp8_e5m2", dtype_name(data.dtype));
  if (!values.same_shape(data))
    fail_operand(op, "values", "the shape of data, " + shape_string(data), shape_string(values));
  for (const auto& [name, t] : {std::pair("values", &values), std::pair("data", &data)})
    if (t->dim(-1) > 1 && t->stride(-1) != 1) fail_operand(op, name, "contiguous rows", to_string(*t));
  for (const TensorView* t : {&values, &data, &q.scales, &q.zeros}) {
    if (t->present() && t->device != Device{})
      fail_operand(op, "data", "tensors on cpu:0", "one on " + to_string(t->device));
    check_memory(op, t == &values ? "values" : t == &data ? "data" : t == &q.scales ? "scales" : "zeros", *t);
  }
}

void check_matrices(const char* op, const TensorView& values, const TensorView& data, const Quantization& q) {
  for (const auto& [name, t] : {std::pair("values", &values), std::pair("data", &data)})
    if (t->rank != 2) fail_operand(op, name, "2 dimensions", shape_string(*t));
  check_pair(op, values, data, q);
  check_quantization(op, "data", data, q);
}

void check_kv_pair(const char* op, const TensorView& values, const TensorView& data, const Quantization& q) {
  for (const auto& [name, t] : {std::pair("values", &values), std::pair("data", &data)})
    if (t->rank != 3 && t->rank != 4) fail_operand(op, name, "3 or 4 dimensions", shape_string(*t));
  check_pair(op, values, data, q);
  check_kv_quantization(op, "data", data, q);
}

void check_group_scales(const char* op, const std::string& name, const TensorView& scales,
                        const TensorView& data, const char* data_name) {
  if (!scales.present())
    fail_operand(op, name, fmt::format("scales, since {} is {}", data_name, dtype_name(data.dtype)), "none");
  if (!is_activation_dtype(scales.dtype))
    fail_operand(op, name, "f32, f16 or bf16", dtype_name(scales.dtype));
}

void check_no_quantization(const char* op, const char* name, const TensorView& data, const Quantization& q) {
  const std::string operand = name;
  check_absent(op, operand + "_scales", q.scales, data, name);
  check_absent(op, operand + "_zeros", q.zeros, data, name);
  if (q.group_size != 0)
    fail_operand(op, operand + "_group_size", fmt::format("0, since {} is {}", name, dtype_name(data.dtype)),
                 std::to_string(q.group_size));
}

// Scales or zeros of keys and values, once their group size is known to be good.
void check_kv_shape(const char* op, const std::string& name, const TensorView& t, const TensorView& kv,
                    std::int64_t groups) {
  bool fits = t.rank == kv.rank;
  std::string expected;
  for (int i = 0; i < kv.rank; ++i) {
    const bool is_row = i == kv.rank - 1;
    fits = fits && (t.dim(i) == (is_row ? groups : kv.dim(i)) || (!is_row && t.dim(i) == 1));
    expected += is_row ? std::to_string(groups) : fmt::format("{} or 1, ", kv.dim(i));
  }
  if (!fits)
    fail_operand(op, name, fmt::format("shape [{}] for {}", expected, to_string(kv)), shape_string(t));
  if (t.dim(-1) > 1 && t.stride(-1) != 1) fail_operand(op, name, "a contiguous last dimension", to_string(t));
}

}  // namespace

float read_element(const TensorView& t, std::int64_t offset) {
  switch (t.dtype) {
    case DType::f16:
      return f16_to_f32(t.as<std::uint16_t>()[offset]);
    case DType::bf16:
      return bf16_to_f32(t.as<std::uint16_t>()[offset]);
    case DType::i8:
      return t.as<std::int8_t>()[offset];
    case DType::fp8_e4m3:
      return fp8_e4m3_to_f32(t.as<std::uint8_t>()[offset]);
    case DType::fp8_e5m2:
      return fp8_e5m2_to_f32(t.as<std::uint8_t>()[offset]);
    case DType::int4: {
      const int nibble = t.as<std::uint8_t>()[offset / 2] >> (offset % 2 * 4) & 15;
      return static_cast<float>((nibble ^ 8) - 8);
    }
    default:
      return t.as<float>()[offset];
  }
}

CodeEnds code_ends(DType dtype) {
  if (dtype == DType::int4) return {-8, 7};
  if (dtype == DType::i8) return {-128, 127};
  return dtype == DType::fp8_e4m3 ? CodeEnds{-448, 448} : CodeEnds{-57344, 57344};
}

void QuantizationRange::add(float x) {
  if (!std::isfinite(x)) return;
  low = std::min(low, x);
  high = std::max(high, x);
}

Quantizer Quantizer::load(DType dtype, const Quantization& q, std::int64_t scale_at, std::int64_t zero_at) {
  return {dtype, read_element(q.scales, scale_at), q.zeros.present() ? read_element(q.zeros, zero_at) : 0.0f};
}

Quantizer Quantizer::store(DType dtype, const QuantizationRange& r, const Quantization& q,
                           std::int64_t scale_at, std::int64_t zero_at) {
  const CodeEnds ends = code_ends(dtype);
  const bool has_zeros = q.zeros.present();
  // Halves first: the difference of the ends may be more than the largest float. Without a zero the largest magnitude
  // goes to the upper end, which is the nearer one.
  const float wanted = has_zeros ? (r.high / 2 - r.low / 2) / (ends.highest - ends.lowest) * 2
                                 : std::max(r.high, -r.low) / ends.highest;
  write(q.scales, scale_at, wanted);
  Quantizer made{dtype, read_element(q.scales, scale_at), 0};
  if (has_zeros) {
    const float low = made.scale != 0 ? r.low / made.scale : 0.0f;
    made.zero = std::clamp(std::nearbyint(ends.lowest - low), ends.lowest, ends.highest);
    q.zeros.as<std::int8_t>()[zero_at] = static_cast<std::int8_t>(made.zero);
  }
  return made;
}

float Quantizer::code(float x) const {
  const float scaled = scale != 0 ? x / scale : 0.0f;
  if (is_fp8(dtype)) return scaled;
  const CodeEnds ends = code_ends(dtype);
  const float rounded = std::isnan(scaled) ? 0.0f : std::nearbyint(scaled);
  return std::clamp(rounded + zero, ends.lowest, ends.highest);
}

void Quantizer::put(const TensorView& data, std::int64_t offset, float x) const {
  kf::put(data, offset, code(x));
}

void check_quantization(const char* op, const char* name, const TensorView& weight, const Quantization& q) {
  const std::string scales = std::string(name) + "_scales", zeros = std::string(name) + "_zeros",
                    group_size = std::string(name) + "_group_size";
  if (!needs_scales(weight.dtype)) return check_no_quantization(op, name, weight, q);
  if (!rows_contiguous(weight))
    fail_operand(op, name, "contiguous rows for " + std::string(dtype_name(weight.dtype)), to_string(weight));
  if (weight.dtype == DType::int4 &&
      (weight.dim(1) % 2 != 0 || (weight.dim(0) > 1 && weight.stride(0) % 2 != 0)))
    fail_operand(op, name, "rows of whole bytes, two elements each, for int4", to_string(weight));
  if (q.group_size != 0 && q.group_size != 32 && q.group_size != 64 &&
      (q.group_size < 0 || q.group_size % 128 != 0))
    fail_operand(op, group_size, "0 (a row), 32, 64 or a multiple of 128", std::to_string(q.group_size));
  check_group_scales(op, scales, q.scales, weight, name);
  check_shape(op, scales, q.scales, weight, q.group_size);
  if (is_fp8(weight.dtype)) check_absent(op, zeros, q.zeros, weight, name);
  if (!q.zeros.present()) return;
  if (q.zeros.dtype != DType::i8) fail_operand(op, zeros, "i8", dtype_name(q.zeros.dtype));
  check_shape(op, zeros, q.zeros, weight, q.group_size);
}

void check_kv_quantization(const char* op, const char* name, const TensorView& kv, const Quantization& q) {
  if (!needs_scales(kv.dtype)) return check_no_quantization(op, name, kv, q);
  const std::string operand = name;
  const std::int64_t head_dim = kv.dim(-1);
  bool whole_bytes = kv.dtype != DType::int4 || head_dim % 2 == 0;
  for (int i = 0; kv.dtype == DType::int4 && i + 1 < kv.rank; ++i)
    whole_bytes = whole_bytes && (kv.dim(i) <= 1 || kv.stride(i) % 2 == 0);
  if (!whole_bytes)
    fail_operand(op, operand, "rows of whole bytes, two elements each, for int4", to_string(kv));
  if (q.group_size != 0 && (q.group_size < 0 || q.group_size % 16 != 0 || head_dim % q.group_size != 0))
    fail_operand(op, operand + "_group_size",
                 fmt::format("0 (the row), or a multiple of 16 that divides head_dim {}", head_dim),
                 std::to_string(q.group_size));
  const std::int64_t groups = q.group_size == 0 ? 1 : head_dim / q.group_size;
  check_group_scales(op, operand + "_scales", q.scales, kv, name);
  check_kv_shape(op, operand + "_scales", q.scales, kv, groups);
  if (is_fp8(kv.dtype)) check_absent(op, operand + "_zeros", q.zeros, kv, name);
  if (!q.zeros.present()) return;
  if (q.zeros.dtype != DType::i8) fail_operand(op, operand + "_zeros", "i8", dtype_name(q.zeros.dtype));
  if (!q.zeros.same_shape(q.scales))
    fail_operand(op, operand + "_zeros", fmt::format("shape {}, that of the scales", shape_string(q.scales)),
                 shape_string(q.zeros));
  if (groups > 1 && q.zeros.stride(-1) != 1)
    fail_operand(op, operand + "_zeros", "a contiguous last dimension", to_string(q.zeros));
}

TensorView kv_broadcast(const TensorView& scales, const TensorView& kv) {
  TensorView t = scales;
  for (int i = 0; i + 1 < kv.rank; ++i) {
    if (t.shape[i] == 1) t.strides[i] = 0;
    t.shape[i] = kv.shape[i];
  }
  return t;
}

ScaleGrid scale_grid(const TensorView& weight, const Quantization& q) {
  const std::int64_t rows = weight.dim(0), stored = q.scales.dim(0);
  return {stored == rows ? 1
          : stored == 1  ? std::max<std::int64_t>(rows, 1)
                         : kBlockRows,
          q.group_size == 0 ? std::max<std::int64_t>(weight.dim(1), 1) : q.group_size};
}

float scale_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group) {
  return read_element(q.scales, row / grid.rows * q.scales.stride(0) + group);
}

float zero_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group) {
  return q.zeros.present() ? read_element(q.zeros, row / grid.rows * q.zeros.stride(0) + group) : 0.0f;
}

float dequantize_element(const TensorView& weight, const Quantization& q, std::int64_t row, std::int64_t k) {
  const ScaleGrid grid = scale_grid(weight, q);
  const std::int64_t group = k / grid.columns;
  return (read_element(weight, row * weight.stride(0) + k) - zero_at(q, grid, row, group)) *
         scale_at(q, grid, row, group);
}

void dequantize_row(const TensorView& weight, const Quantization& q, std::int64_t row, float* values) {
  for (std::int64_t k = 0; k < weight.dim(1); ++k) values[k] = dequantize_element(weight, q, row, k);
}

void quantize(const TensorView& values, const TensorView& data, const Quantization& q) {
  check_matrices("quantize", values, data, q);
  const ScaleGrid grid = scale_grid(data, q);
  const std::int64_t rows = data.dim(0), n = data.dim(1);
#pragma omp parallel for
  for (std::int64_t scale_row = 0; scale_row < ceil_div(rows, grid.rows); ++scale_row)
    for (std::int64_t group = 0; group < q.scales.dim(1); ++group)
      quantize_group(values, data, q, scale_row * grid.rows, std::min(rows, (scale_row + 1) * grid.rows),
                     group * grid.columns, std::min(n, (group + 1) * grid.columns), scale_row, group);
}

void dequantize(const TensorView& data, const Quantization& q, const TensorView& values) {
  check_matrices("dequantize", values, data, q);
#pragma omp parallel for
  for (std::int64_t row = 0; row < data.dim(0); ++row) {
    std::vector<float> x(static_cast<std::size_t>(data.dim(1)));
    dequantize_row(data, q, row, x.data());
    for (std::int64_t k = 0; k < data.dim(1); ++k)
      write(values, row * values.stride(0) + k, x[static_cast<std::size_t>(k)]);
  }
}

void quantize_kv(const TensorView& values, const TensorView& data, const Quantization& q) {
  check_kv_pair("quantize_kv", values, data, q);
  if (data.numel() == 0) return;
  const TensorView scales = kv_broadcast(q.scales, data);
  const TensorView zeros = q.zeros.present() ? kv_broadcast(q.zeros, data) : TensorView{};
  const std::int64_t rows = data.numel() / data.dim(-1), size = kv_group_size(data, q),
                     groups = q.scales.dim(-1);
  // A row's scale among all, which lie one after another here.
  const TensorView places = kv_broadcast(
      TensorView::contiguous(nullptr, q.scales.dtype,
                             std::span(q.scales.shape.data(), static_cast<std::size_t>(q.scales.rank))),
      data);
  std::vector<QuantizationRange> ranges(static_cast<std::size_t>(q.scales.numel()));
  const auto range_of = [&](std::int64_t row, std::int64_t g) -> QuantizationRange& {
    return ranges[static_cast<std::size_t>(row_offset(places, row) + g)];
  };
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t g = 0, from = row_offset(values, row); g < groups; ++g) {
      QuantizationRange& range = range_of(row, g);
      for (std::int64_t i = g * size; i < (g + 1) * size; ++i) range.add(read_element(values, from + i));
    }
  const auto zero_at = [&](std::int64_t row, std::int64_t g) {
    return zeros.present() ? row_offset(zeros, row) + g : 0;
  };
  for (std::int64_t row = 0; row < rows; ++row)  // rows of one scale all store the same
    for (std::int64_t g = 0; g < groups; ++g)
      Quantizer::store(data.dtype, range_of(row, g), q, row_offset(scales, row) + g, zero_at(row, g));
#pragma omp parallel for
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t g = 0, from = row_offset(values, row), to = row_offset(data, row); g < groups; ++g) {
      const Quantizer quantizer =
          Quantizer::load(data.dtype, q, row_offset(scales, row) + g, zero_at(row, g));
      for (std::int64_t i = g * size; i < (g + 1) * size; ++i)
        quantizer.put(data, to + i, read_element(values, from + i));
    }
}

void dequantize_kv(const TensorView& data, const Quantization& q, const TensorView& values) {
  check_kv_pair("dequantize_kv", values, data, q);
  if (data.numel() == 0) return;
  const TensorView scales = kv_broadcast(q.scales, data);
  const TensorView zeros = q.zeros.present() ? kv_broadcast(q.zeros, data) : TensorView{};
  const std::int64_t rows = data.numel() / data.dim(-1), size = kv_group_size(data, q);
#pragma omp parallel for
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t i = 0; i < data.dim(-1); ++i) {
      const float zero = zeros.present() ? read_element(zeros, row_offset(zeros, row) + i / size) : 0.0f;
      write(values, row_offset(values, row) + i,
            (read_element(data, row_offset(data, row) + i) - zero) *
                read_element(scales, row_offset(scales, row) + i / size));
    }
}

}  // namespace kf
