#include "case.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/block_formats.h"
#include "core/half.h"
#include "core/hash.h"
#include "core/quantized.h"
#include "kf/error.h"

namespace kf::cases {

std::int64_t element_offset(const TensorView& t, std::int64_t flat) {
  if (t.is_contiguous()) return flat;
  std::int64_t offset = 0;
  for (int i = t.rank - 1; i >= 0; --i) {
    offset += flat % t.shape[i] * t.strides[i];
    flat /= t.shape[i];
  }
  return offset;
}

double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return std::ldexp(1.0, -11);
    case DType::bf16:
      return std::ldexp(1.0, -8);
    default:
      return std::ldexp(1.0, -24);
  }
}

double element(const TensorView& t, std::int64_t flat) {
  const std::int64_t o = element_offset(t, flat);
  switch (t.dtype) {
    case DType::f32:
      return t.as<float>()[o];
    case DType::f16:
      return f16_to_f32(t.as<std::uint16_t>()[o]);
    case DType::bf16:
      return bf16_to_f32(t.as<std::uint16_t>()[o]);
    case DType::int4:
    case DType::i8:
    case DType::fp8_e4m3:
    case DType::fp8_e5m2:
      return read_element(t, o);
    case DType::u8:
    case DType::boolean:
      return t.as<std::uint8_t>()[o];
    case DType::i32:
      return t.as<std::int32_t>()[o];
    case DType::i64:
      return static_cast<double>(t.as<std::int64_t>()[o]);
    default:
      break;
  }
  const DTypeInfo& info = dtype_info(t.dtype);
  if (!info.is_block) throw_invalid(std::string("cases: cannot read elements of ") + info.name);
  float block[kMaxBlockElems];
  dequantize_blocks(t.dtype, t.at(o), block, info.block_elems);
  return block[o % info.block_elems];
}

void set_element(const TensorView& t, std::int64_t flat, double value) {
  const std::int64_t o = element_offset(t, flat);
  switch (t.dtype) {
    case DType::f32:
      t.as<float>()[o] = static_cast<float>(value);
      return;
    case DType::f16:
      t.as<std::uint16_t>()[o] = f32_to_f16(static_cast<float>(value));
      return;
    case DType::bf16:
      t.as<std::uint16_t>()[o] = f32_to_bf16(static_cast<float>(value));
      return;
    case DType::i8:
      t.as<std::int8_t>()[o] = static_cast<std::int8_t>(std::isnan(value) ? 0 : value);
      return;
    case DType::fp8_e4m3:
      t.as<std::uint8_t>()[o] = f32_to_fp8_e4m3(static_cast<float>(value));
      return;
    case DType::fp8_e5m2:
      t.as<std::uint8_t>()[o] = f32_to_fp8_e5m2(static_cast<float>(value));
      return;
    case DType::i32:
      t.as<std::int32_t>()[o] = static_cast<std::int32_t>(value);
      return;
    case DType::i64:
      t.as<std::int64_t>()[o] = static_cast<std::int64_t>(value);
      return;
    case DType::boolean:
      t.as<std::uint8_t>()[o] = value != 0;
      return;
    default:
      throw_invalid(std::string("cases: cannot write elements of ") + dtype_name(t.dtype));
  }
}

Maker::Maker(std::string_view seed) : rng_(fnv1a(seed)) {}

TensorView Maker::normal(DType dtype, std::initializer_list<std::int64_t> shape, float stddev, float mean) {
  Tensor plain(dtype_info(dtype).is_block ? DType::f32 : dtype, shape);
  std::normal_distribution<float> dist(mean, stddev);
  const std::int64_t n = plain.view().numel();
  for (std::int64_t i = 0; i < n; ++i) set_element(plain, i, dist(rng_));
  if (!dtype_info(dtype).is_block) {
    storage_.push_back(plain);
    return plain;
  }
  storage_.emplace_back(dtype, shape);
  quantize_blocks(dtype, plain.as<float>(), storage_.back().view().data, n);
  return storage_.back();
}

TensorView Maker::uniform(DType dtype, std::initializer_list<std::int64_t> shape, float lo, float hi) {
  storage_.emplace_back(dtype, shape);
  std::uniform_real_distribution<float> dist(lo, hi);
  const TensorView t = storage_.back();
  for (std::int64_t i = 0, n = t.numel(); i < n; ++i) set_element(t, i, dist(rng_));
  return t;
}

TensorView Maker::integers(DType dtype, const std::vector<std::int64_t>& values) {
  storage_.emplace_back(dtype, std::initializer_list<std::int64_t>{static_cast<std::int64_t>(values.size())});
  const TensorView t = storage_.back();
  for (std::size_t i = 0; i < values.size(); ++i)
    set_element(t, static_cast<std::int64_t>(i), static_cast<double>(values[i]));
  return t;
}

TensorView Maker::table(const std::vector<std::vector<std::int32_t>>& rows) {
  const std::int64_t width = rows.empty() ? 0 : static_cast<std::int64_t>(rows[0].size());
  storage_.emplace_back(DType::i32,
                        std::initializer_list<std::int64_t>{static_cast<std::int64_t>(rows.size()), width});
  const TensorView t = storage_.back();
  for (std::size_t r = 0; r < rows.size(); ++r)
    std::memcpy(t.as<std::int32_t>() + r * static_cast<std::size_t>(width), rows[r].data(),
                rows[r].size() * sizeof(std::int32_t));
  return t;
}

TensorView Maker::filled(DType dtype, std::initializer_list<std::int64_t> shape, float value) {
  storage_.emplace_back(dtype, shape);
  const TensorView t = storage_.back();
  for (std::int64_t i = 0, n = t.numel(); i < n; ++i) set_element(t, i, value);
  return t;
}

TensorView Maker::strided(const TensorView& t, std::int64_t pad) {
  TensorView out = t;
  std::int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    out.strides[i] = stride;
    stride *= t.shape[i] + (i == t.rank - 1 ? pad : i > 0 ? 1 : 0);
  }
  const double between = dtype_info(t.dtype).is_float ? std::numeric_limits<double>::quiet_NaN() : -1.0;
  storage_.emplace_back(t.dtype, std::initializer_list<std::int64_t>{stride});
  for (std::int64_t i = 0; i < stride; ++i) set_element(storage_.back(), i, between);
  out.data = storage_.back().view().data;
  for (std::int64_t i = 0, n = t.numel(); i < n; ++i) set_element(out, i, element(t, i));
  return out;
}

const CaseList& all_cases() {
  static const CaseList list = [] {
    CaseList l;
    add_linear_cases(l);
    add_norm_cases(l);
    add_elementwise_cases(l);
    add_quantized_output_cases(l);
    add_attention_cases(l);
    add_rope_cases(l);
    add_sampling_cases(l);
    return l;
  }();
  return list;
}

const CaseList& device_cases() {
  static const CaseList list = [] {
    CaseList l;
    add_linear_device_cases(l);
    add_norm_device_cases(l);
    add_elementwise_device_cases(l);
    add_rope_device_cases(l);
    add_attention_device_cases(l);
    add_sampling_device_cases(l);
    return l;
  }();
  return list;
}

}  // namespace kf::cases
