#include "ops/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "core/operands.h"

namespace kf::ops {

void Check::fail(const std::string& expected, const std::string& got) const {
  fail_operand(op_, name_, expected, got);
}

void fail_attr(const char* op, const char* name, const std::string& expected, const std::string& got) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}: {}: expected {}, got {}", op, name, expected, got),
              {{"op", op}, {"attribute", name}, {"expected", expected}, {"got", got}});
}

const Check& Check::present() const {
  if (!t_.present()) fail("a tensor", "none");
  return *this;
}

const Check& Check::rank(int expected) const { return rank_between(expected, expected); }

const Check& Check::rank_between(int lo, int hi) const {
  present();
  if (t_.rank < lo || t_.rank > hi)
    fail(lo == hi ? fmt::format("{} dimensions", lo) : fmt::format("{} to {} dimensions", lo, hi),
         fmt::format("{} of shape {}", t_.rank, shape_string(t_)));
  return *this;
}

const Check& Check::dim(int i, std::int64_t expected, const char* what) const {
  if (t_.dim(i) != expected)
    fail(fmt::format("{} ({}) in dimension {}", expected, what, i < 0 ? i + t_.rank : i),
         "shape " + shape_string(t_));
  return *this;
}

const Check& Check::shape_like(const TensorView& o, const char* other_name) const {
  present();
  if (!t_.same_shape(o))
    fail(fmt::format("the shape of {}, {}", other_name, shape_string(o)), shape_string(t_));
  return *this;
}

const Check& Check::dtype(DType expected) const {
  present();
  if (t_.dtype != expected) fail(dtype_name(expected), dtype_name(t_.dtype));
  return *this;
}

const Check& Check::dtype_like(const TensorView& o, const char* other_name) const {
  present();
  if (t_.dtype != o.dtype)
    fail(fmt::format("{}, the dtype of {}", dtype_name(o.dtype), other_name), dtype_name(t_.dtype));
  return *this;
}

const Check& Check::activation_dtype() const {
  present();
  if (!is_activation_dtype(t_.dtype)) fail("f32, f16 or bf16", dtype_name(t_.dtype));
  return *this;
}

const Check& Check::weight_dtype() const {
  present();
  const DTypeInfo& info = dtype_info(t_.dtype);
  if (!is_activation_dtype(t_.dtype) && !info.is_block) fail(weight_dtype_names(), dtype_name(t_.dtype));
  bool whole_blocks = t_.rank > 0 && t_.dim(-1) % info.block_elems == 0 && t_.stride(-1) == 1;
  for (int i = 0; i < t_.rank - 1; ++i)
    whole_blocks = whole_blocks && (t_.shape[i] <= 1 || t_.strides[i] % info.block_elems == 0);
  if (info.is_block && !whole_blocks)
    fail(fmt::format("contiguous rows of whole blocks of {} for {}", info.block_elems, info.name),
         to_string(t_));
  return *this;
}

const Check& Check::last_dim_contiguous() const {
  if (t_.rank > 0 && t_.dim(-1) > 1 && t_.stride(-1) != 1)
    fail("a contiguous last dimension", fmt::format("stride {}", t_.stride(-1)));
  return *this;
}

const Check& Check::contiguous() const {
  if (!t_.is_contiguous()) fail("a contiguous tensor", to_string(t_));
  return *this;
}

const Check& Check::no_overlap_in_itself() const {
  if (t_.numel() == 0) return *this;
  // Sorted by stride, each dimension must step over all that lies within it.
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // (stride, size)
  for (int i = 0; i < t_.rank; ++i)
    if (t_.shape[i] > 1) dims.emplace_back(t_.strides[i] < 0 ? -t_.strides[i] : t_.strides[i], t_.shape[i]);
  std::sort(dims.begin(), dims.end());
  std::int64_t span = 1;
  for (auto [stride, size] : dims) {
    if (stride < span) fail("strides under which no two elements share memory", to_string(t_));
    span = stride * (size - 1) + span;
  }
  return *this;
}

void check_finite(const char* op, const char* name, float value) {
  if (!std::isfinite(value)) fail_attr(op, name, "a finite number", fmt::format("{}", value));
}

namespace {

// Index of the first value outside [lo, hi), or the length of the table.
template <class T>
std::int64_t first_outside(const TensorView& table, std::int64_t lo, std::int64_t hi) {
  const T* values = table.as<T>();
  const std::int64_t n = table.dim(0), stride = table.stride(0);
  for (std::int64_t i = 0; i < n; ++i)
    if (values[i * stride] < lo || values[i * stride] >= hi) return i;
  return n;
}

}  // namespace

void check_values(const char* op, const char* name, const TensorView& table, std::int64_t lo, std::int64_t hi,
                  const char* what) {
  if (!on_host(table)) return;
  const bool wide = table.dtype == DType::i64;
  const std::int64_t i =
      wide ? first_outside<std::int64_t>(table, lo, hi) : first_outside<std::int32_t>(table, lo, hi);
  if (i == table.dim(0)) return;
  const std::int64_t at = i * table.stride(0);
  const std::int64_t value = wide ? table.as<std::int64_t>()[at] : table.as<std::int32_t>()[at];
  const std::string range = lo == std::numeric_limits<std::int64_t>::min()
                                ? fmt::format("less than {}", hi)
                                : fmt::format("in [{}, {})", lo, hi);
  check(op, name, table)
      .fail(fmt::format("values {} ({})", range, what), fmt::format("{} at index {}", value, i));
}

void infer_output(TensorView& out, OutputQuantization& q, const TensorView& x) {
  if (!x.present()) return;
  if (!out.present()) out = contiguous_like(x, q.present() ? q.code_dtype() : x.dtype);
  if (q.dynamic() && !q.scales.present() && x.rank > 0)
    q.scales = TensorView::contiguous(
        nullptr, DType::f32, std::span(x.shape.data(), static_cast<std::size_t>(x.rank - 1)), x.device);
}

void validate_output(const char* op, const TensorView& out, const OutputQuantization& q, const TensorView& x,
                     const char* x_name) {
  const Check c = check(op, "out", out).shape_like(x, x_name);
  if (!q.present()) {
    c.dtype_like(x, x_name);
  } else if (out.dtype != q.code_dtype()) {
    c.fail(fmt::format("{}, as out_dtype says", dtype_name(q.code_dtype())), dtype_name(out.dtype));
  }
  c.last_dim_contiguous().no_overlap_in_itself();
  const auto absent = [&](const char* name, const TensorView& t, const char* why) {
    if (t.present()) check(op, name, t).fail(fmt::format("none, {}", why), to_string(t));
  };
  if (!q.present()) {
    absent("static_scale", q.static_scale, "since out_dtype is none");
    absent("out_scales", q.scales, "since out_dtype is none");
  } else if (q.static_scale.present()) {
    check(op, "static_scale", q.static_scale).rank(1).dim(0, 1, "one scale in all").dtype(DType::f32);
    absent("out_scales", q.scales, "since static_scale is given");
  } else {
    if (!q.scales.present())
      check(op, "out_scales", q.scales)
          .fail(fmt::format("room for a scale a row, or a static_scale, for {}", dtype_name(out.dtype)),
                "none");
    const Check s = check(op, "out_scales", q.scales).dtype(DType::f32).rank(x.rank - 1);
    for (int i = 0; i < q.scales.rank; ++i) s.dim(i, x.dim(i), x_name);
    s.no_overlap_in_itself();
  }
}

void validate_static_scale(const char* op, const OutputQuantization& q) {
  if (!q.static_scale.present() || !on_host(q.static_scale)) return;
  const float scale = *q.static_scale.as<float>();
  if (!(scale > 0) || std::isinf(scale))
    check(op, "static_scale", q.static_scale).fail("a finite number > 0", fmt::format("{}", scale));
}

TensorView contiguous_like(const TensorView& like, DType dtype) {
  return TensorView::contiguous(
      nullptr, dtype, std::span(like.shape.data(), static_cast<std::size_t>(like.rank)), like.device);
}

}  // namespace kf::ops
