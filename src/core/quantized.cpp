#include "core/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

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

float read(const TensorView& t, std::int64_t offset) {
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

void write(const TensorView& t, std::int64_t offset, float value) {
  with_activation_type(t.dtype,
                       [&]<class T>(std::type_identity<T>) { t.as<T>()[offset] = from_f32<T>(value); });
}

// How a dtype rounds: the ends of its values, and the largest magnitude that a scale brings to an end.
struct Code {
  float lowest, highest, most;
};
Code code_of(DType t) {
  if (t == DType::int4) return {-8, 7, 7};
  if (t == DType::i8) return {-128, 127, 127};
  return t == DType::fp8_e4m3 ? Code{-448, 448, 448} : Code{-57344, 57344, 57344};
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
  const Code code = code_of(data.dtype);
  float low = 0, high = 0;
  for (std::int64_t row = row_begin; row < row_end; ++row)
    for (std::int64_t k = begin; k < end; ++k) {
      const float x = read(values, row * values.stride(0) + k);
      if (!std::isfinite(x)) continue;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  const bool has_zeros = q.zeros.present();
  // Halves first: the difference of the ends may be more than the largest float.
  const float wanted =
      has_zeros ? (high / 2 - low / 2) / (code.highest - code.lowest) * 2 : std::max(high, -low) / code.most;
  const std::int64_t at = scale_row * q.scales.stride(0) + group;
  write(q.scales, at, wanted);
  const float scale = read(q.scales, at);
  const auto scaled = [&](float x) { return scale != 0 ? x / scale : 0.0f; };
  float zero = 0;
  if (has_zeros) {
    zero = std::clamp(std::nearbyint(code.lowest - scaled(low)), code.lowest, code.highest);
    q.zeros.as<std::int8_t>()[scale_row * q.zeros.stride(0) + group] = static_cast<std::int8_t>(zero);
  }
  for (std::int64_t row = row_begin; row < row_end; ++row)
    for (std::int64_t k = begin; k < end; ++k) {
      float x = scaled(read(values, row * values.stride(0) + k));
      if (!is_fp8(data.dtype))
        x = std::isnan(x) ? zero : std::clamp(std::nearbyint(x) + zero, code.lowest, code.highest);
      put(data, row * data.stride(0) + k, x);
    }
}

void check_pair(const char* op, const TensorView& values, const TensorView& data, const Quantization& q) {
  for (const auto& [name, t] : {std::pair("values", &values), std::pair("data", &data)}) {
    if (t->rank != 2) fail_operand(op, name, "2 dimensions", shape_string(*t));
    if (!rows_contiguous(*t)) fail_operand(op, name, "contiguous rows", to_string(*t));
  }
  if (!is_activation_dtype(values.dtype))
    fail_operand(op, "values", "f32, f16 or bf16", dtype_name(values.dtype));
  if (!needs_scales(data.dtype))
    fail_operand(op, "data", "int4, i8, fp8_e4m3 or fp8_e5m2", dtype_name(data.dtype));
  if (!values.same_shape(data))
    fail_operand(op, "values", "the shape of data, " + shape_string(data), shape_string(values));
  check_quantization(op, "data", data, q);
  for (const TensorView* t : {&values, &data, &q.scales, &q.zeros}) {
    if (t->present() && t->device != Device{})
      fail_operand(op, "data", "tensors on cpu:0", "one on " + to_string(t->device));
    check_memory(op, t == &values ? "values" : t == &data ? "data" : t == &q.scales ? "scales" : "zeros", *t);
  }
}

}  // namespace

void check_quantization(const char* op, const char* name, const TensorView& weight, const Quantization& q) {
  const std::string scales = std::string(name) + "_scales", zeros = std::string(name) + "_zeros",
                    group_size = std::string(name) + "_group_size";
  if (!needs_scales(weight.dtype)) {
    check_absent(op, scales, q.scales, weight, name);
    check_absent(op, zeros, q.zeros, weight, name);
    if (q.group_size != 0)
      fail_operand(op, group_size, fmt::format("0, since {} is {}", name, dtype_name(weight.dtype)),
                   std::to_string(q.group_size));
    return;
  }
  if (!rows_contiguous(weight))
    fail_operand(op, name, "contiguous rows for " + std::string(dtype_name(weight.dtype)), to_string(weight));
  if (weight.dtype == DType::int4 &&
      (weight.dim(1) % 2 != 0 || (weight.dim(0) > 1 && weight.stride(0) % 2 != 0)))
    fail_operand(op, name, "rows of whole bytes, two elements each, for int4", to_string(weight));
  if (q.group_size != 0 && q.group_size != 32 && q.group_size != 64 &&
      (q.group_size < 0 || q.group_size % 128 != 0))
    fail_operand(op, group_size, "0 (a row), 32, 64 or a multiple of 128", std::to_string(q.group_size));
  if (!q.scales.present())
    fail_operand(op, scales, fmt::format("scales, since {} is {}", name, dtype_name(weight.dtype)), "none");
  if (!is_activation_dtype(q.scales.dtype))
    fail_operand(op, scales, "f32, f16 or bf16", dtype_name(q.scales.dtype));
  check_shape(op, scales, q.scales, weight, q.group_size);
  if (is_fp8(weight.dtype)) check_absent(op, zeros, q.zeros, weight, name);
  if (!q.zeros.present()) return;
  if (q.zeros.dtype != DType::i8) fail_operand(op, zeros, "i8", dtype_name(q.zeros.dtype));
  check_shape(op, zeros, q.zeros, weight, q.group_size);
}

ScaleGrid scale_grid(const TensorView& weight, const Quantization& q) {
  const std::int64_t rows = weight.dim(0), stored = q.scales.dim(0);
  return {stored == rows ? 1
          : stored == 1  ? std::max<std::int64_t>(rows, 1)
                         : kBlockRows,
          q.group_size == 0 ? std::max<std::int64_t>(weight.dim(1), 1) : q.group_size};
}

float scale_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group) {
  return read(q.scales, row / grid.rows * q.scales.stride(0) + group);
}

float zero_at(const Quantization& q, const ScaleGrid& grid, std::int64_t row, std::int64_t group) {
  return q.zeros.present() ? read(q.zeros, row / grid.rows * q.zeros.stride(0) + group) : 0.0f;
}

float dequantize_element(const TensorView& weight, const Quantization& q, std::int64_t row, std::int64_t k) {
  const ScaleGrid grid = scale_grid(weight, q);
  const std::int64_t group = k / grid.columns;
  return (read(weight, row * weight.stride(0) + k) - zero_at(q, grid, row, group)) *
         scale_at(q, grid, row, group);
}

void dequantize_row(const TensorView& weight, const Quantization& q, std::int64_t row, float* values) {
  for (std::int64_t k = 0; k < weight.dim(1); ++k) values[k] = dequantize_element(weight, q, row, k);
}

void quantize(const TensorView& values, const TensorView& data, const Quantization& q) {
  check_pair("quantize", values, data, q);
  const ScaleGrid grid = scale_grid(data, q);
  const std::int64_t rows = data.dim(0), n = data.dim(1);
#pragma omp parallel for
  for (std::int64_t scale_row = 0; scale_row < ceil_div(rows, grid.rows); ++scale_row)
    for (std::int64_t group = 0; group < q.scales.dim(1); ++group)
      quantize_group(values, data, q, scale_row * grid.rows, std::min(rows, (scale_row + 1) * grid.rows),
                     group * grid.columns, std::min(n, (group + 1) * grid.columns), scale_row, group);
}

void dequantize(const TensorView& data, const Quantization& q, const TensorView& values) {
  check_pair("dequantize", values, data, q);
#pragma omp parallel for
  for (std::int64_t row = 0; row < data.dim(0); ++row) {
    std::vector<float> x(static_cast<std::size_t>(data.dim(1)));
    dequantize_row(data, q, row, x.data());
    for (std::int64_t k = 0; k < data.dim(1); ++k)
      write(values, row * values.stride(0) + k, x[static_cast<std::size_t>(k)]);
  }
}

}  // namespace kf
