// Keys or values as a kernel reads them: elements of some type, and beside codes what they are multiplied by.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/half.h"
#include "core/quantized.h"
#include "ops/sequences.h"

namespace kf::cpu {

// Codes of quantized keys and values, as they lie.
struct Int8Code {
  std::int8_t code;
};
struct Int4Codes {
  std::uint8_t pair;  // the low half first
};
template <DType kDType>
struct Fp8Code {
  static constexpr DType kType = kDType;
  std::uint8_t code;
};

template <class T>
inline constexpr bool kIsCode =
    !std::is_same_v<T, float> && !std::is_same_v<T, F16> && !std::is_same_v<T, Bf16>;
template <class T>
inline constexpr int kElementsOf = std::is_same_v<T, Int4Codes> ? 2 : 1;

// The address `elements` further on: of int4, an even number.
template <class T>
constexpr const T* advance(const T* p, std::int64_t elements) {
  return p + elements / kElementsOf<T>;
}

// The smallest group of elements that share a scale, but for a row.
inline constexpr int kLeastGroup = 16;

// Calls f(std::type_identity<T>()) with the element type of keys and values of this dtype.
template <class F>
decltype(auto) with_kv_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::int4:
      return std::forward<F>(f)(std::type_identity<Int4Codes>());
    case DType::i8:
      return std::forward<F>(f)(std::type_identity<Int8Code>());
    case DType::fp8_e4m3:
      return std::forward<F>(f)(std::type_identity<Fp8Code<DType::fp8_e4m3>>());
    case DType::fp8_e5m2:
      return std::forward<F>(f)(std::type_identity<Fp8Code<DType::fp8_e5m2>>());
    default:
      return with_activation_type(dtype, std::forward<F>(f));
  }
}

// The scales and zeros of one sequence's keys or values.
class KvScales {
 public:
  KvScales(const ops::Sequences& sequences, const ops::SequenceSpan& span, const TensorView& kv,
           const Quantization& q)
      : q_(q), rows_(sequences.scale_rows(kv, q, span)) {}

  // Whether a row has one scale and no zero, so that it may multiply the row's result instead of its elements.
  bool one_a_row() const { return q_.scales.dim(-1) == 1 && !q_.zeros.present(); }
  std::int64_t group_size() const { return rows_.group_size; }

  // Groups of a row.
  std::int64_t groups() const { return q_.scales.dim(-1); }
  // Where they begin.
  struct Row {
    std::int64_t scales, zeros;
  };
  Row row(std::int64_t key, std::int64_t head) const {
    return {rows_.scales.offset(key, head), q_.zeros.present() ? rows_.zeros.offset(key, head) : 0};
  }
  // Of the key after it, on the same page.
  Row next(Row row) const {
    return {row.scales + rows_.scales.token_stride, row.zeros + rows_.zeros.token_stride};
  }
  float scale(Row row, std::int64_t group) const { return read_element(q_.scales, row.scales + group); }
  float zero(Row row, std::int64_t group) const { return zeros(row) ? zeros(row)[group] : 0.0f; }
  const TensorView& scales() const { return q_.scales; }
  const std::int8_t* zeros(Row row) const {
    return q_.zeros.present() ? q_.zeros.as<std::int8_t>() + row.zeros : nullptr;
  }
  // The first scales of `count` keys of one page, each times `unit`.
  void load(std::int64_t key, std::int64_t head, int count, float unit, float* out) const {
    const std::int64_t at = rows_.scales.offset(key, head), stride = rows_.scales.token_stride;
    with_activation_type(q_.scales.dtype, [&]<class T>(std::type_identity<T>) {
      const T* const scales = q_.scales.as<T>() + at;
      for (int j = 0; j < count; ++j) out[j] = to_f32(scales[j * stride]) * unit;
    });
  }

 private:
  const Quantization& q_;
  const ops::ScaleRows rows_;
};

// Keys or values of one sequence, elements of type T.
template <class T>
struct KvSource {
  const ops::KeyRows& rows;
  const T* data;
  const KvScales& scales;
};

}  // namespace kf::cpu
