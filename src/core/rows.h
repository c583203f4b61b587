// Rows of a strided tensor: its elements as a list of runs along the last dimension.
#pragma once

#include <cstdint>
#include <optional>

#include "kf/tensor.h"

namespace kf {

// Element offset of each row. Leading dimensions that step evenly are merged, so that the usual tensor has
// one.
class RowOffsets {
 public:
  RowOffsets() = default;
  // Rows run over the last `inner` dimensions.
  explicit RowOffsets(const TensorView& t, int inner = 1) {
    for (int i = 0; i < t.rank - inner; ++i) {
      if (t.shape[i] == 1) continue;
      if (dims_ > 0 && strides_[dims_ - 1] == t.shape[i] * t.strides[i]) {
        shape_[dims_ - 1] *= t.shape[i];
        strides_[dims_ - 1] = t.strides[i];
      } else {
        shape_[dims_] = t.shape[i];
        strides_[dims_++] = t.strides[i];
      }
    }
  }

  constexpr std::int64_t operator()(std::int64_t row) const {
    std::int64_t offset = 0;
    for (int i = dims_ - 1; i > 0; --i) {
      offset += row % shape_[i] * strides_[i];
      row /= shape_[i];
    }
    return dims_ > 0 ? offset + row * strides_[0] : 0;
  }

  // Elements from each row to the next, where that is one number.
  std::optional<std::int64_t> even_stride() const {
    if (dims_ > 1) return std::nullopt;
    return strides_[0];
  }

 private:
  int dims_ = 0;
  Dims shape_{}, strides_{};
};

inline std::int64_t num_rows(const TensorView& t) {
  std::int64_t rows = 1;
  for (int i = 0; i < t.rank - 1; ++i) rows *= t.shape[i];
  return rows;
}

// `t` with the shape of `like`, as NumPy broadcasts it: of size 1, or missing in front, it does not step.
inline TensorView broadcast_to(const TensorView& t, const TensorView& like) {
  TensorView b = t;
  b.rank = like.rank;
  b.shape = like.shape;
  b.strides = {};
  for (int i = 1; i <= t.rank; ++i)
    if (t.dim(-i) != 1) b.strides[like.rank - i] = t.stride(-i);
  return b;
}

}  // namespace kf
