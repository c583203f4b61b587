#include "kf/ops/sampling.h"

#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "ops/check.h"
#include "ops/ops.h"

namespace kf::ops {
namespace {

TensorView vector_of_rows(const TensorView& logits, DType dtype) {
  return TensorView::contiguous(nullptr, dtype, {logits.dim(0)}, logits.device);
}

// ids are i32, and a row to choose from may not be empty.
void validate_logits(const char* op, const TensorView& logits) {
  const Check c = check(op, "logits", logits).rank(2).activation_dtype().last_dim_contiguous();
  const std::int64_t vocab = logits.dim(1);
  if ((vocab == 0 && logits.dim(0) > 0) || vocab > std::numeric_limits<std::int32_t>::max())
    c.fail("1 to 2^31 - 1 logits a row", shape_string(logits));
}

void validate_row_vector(const char* op, const char* name, const TensorView& t, const TensorView& logits,
                         DType dtype) {
  check(op, name, t).rank(1).dim(0, logits.dim(0), "rows of logits").dtype(dtype).no_overlap_in_itself();
}

}  // namespace

void infer(EmbeddingParams& p) {
  if (p.ids.rank != 1 || p.table.rank != 2 || p.out.present()) return;
  const DType dtype = dtype_info(p.table.dtype).is_block ? DType::f32 : p.table.dtype;
  p.out = TensorView::contiguous(nullptr, dtype, {p.ids.dim(0), p.table.dim(1)}, p.table.device);
}
void validate(const EmbeddingParams& p) {
  check("embedding", "ids", p.ids).rank(1).dtype(DType::i32);
  check("embedding", "table", p.table).rank(2).weight_dtype().last_dim_contiguous();
  check("embedding", "out", p.out)
      .rank(2)
      .dim(0, p.ids.dim(0), "the number of ids")
      .dim(1, p.table.dim(1), "the width of the table")
      .activation_dtype()
      .last_dim_contiguous()
      .no_overlap_in_itself();
  if (!std::isfinite(p.scale)) fail_attr("embedding", "scale", "a finite number", fmt::format("{}", p.scale));
}
void validate_data(const EmbeddingParams& p) {
  check_values("embedding", "ids", p.ids, 0, p.table.dim(0), "rows of the table");
}
Cost cost(const EmbeddingParams& p) {
  TensorView rows = p.table;  // as many rows as are read
  rows.shape[0] = p.ids.dim(0);
  return {0, static_cast<double>(p.ids.nbytes() + rows.nbytes() + p.out.nbytes())};
}

void infer(ArgmaxParams& p) {
  if (p.logits.rank != 2) return;
  if (!p.ids.present()) p.ids = vector_of_rows(p.logits, DType::i32);
  if (!p.max.present()) p.max = vector_of_rows(p.logits, DType::f32);
}
void validate(const ArgmaxParams& p) {
  validate_logits("argmax", p.logits);
  validate_row_vector("argmax", "ids", p.ids, p.logits, DType::i32);
  if (p.max.present()) validate_row_vector("argmax", "max", p.max, p.logits, DType::f32);
}
void validate_data(const ArgmaxParams&) {}
Cost cost(const ArgmaxParams& p) {
  const double max_bytes = p.max.present() ? static_cast<double>(p.max.nbytes()) : 0;
  return {static_cast<double>(p.logits.numel()),
          static_cast<double>(p.logits.nbytes() + p.ids.nbytes()) + max_bytes};
}

void infer(SampleParams& p) {
  if (p.logits.rank == 2 && !p.ids.present()) p.ids = vector_of_rows(p.logits, DType::i32);
}
void validate(const SampleParams& p) {
  validate_logits("sample", p.logits);
  validate_row_vector("sample", "ids", p.ids, p.logits, DType::i32);
  if (!(p.temperature >= 0.0f) || std::isinf(p.temperature))
    fail_attr("sample", "temperature", "a number >= 0", fmt::format("{}", p.temperature));
  if (p.top_k < 0) fail_attr("sample", "top_k", "0 (all) or more", fmt::format("{}", p.top_k));
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f))
    fail_attr("sample", "top_p", "in (0, 1]", fmt::format("{}", p.top_p));
  if (!(p.min_p >= 0.0f && p.min_p <= 1.0f))
    fail_attr("sample", "min_p", "in [0, 1]", fmt::format("{}", p.min_p));
}
void validate_data(const SampleParams&) {}
Cost cost(const SampleParams& p) {
  return {20.0 * static_cast<double>(p.logits.numel()),
          static_cast<double>(p.logits.nbytes() + p.ids.nbytes())};
}

}  // namespace kf::ops
