// Checks that validate() functions are written with. Each throws invalid_argument with what was expected and what came.
#pragma once

#include <string>

#include "kf/error.h"
#include "kf/ops/quantized_output.h"
#include "kf/tensor.h"

namespace kf::ops {

// Starts a check of one operand: check("rms_norm", "weight", p.weight).rank(1).dim(0, n, "x's last dimension")
class Check {
 public:
  Check(const char* op, const char* name, const TensorView& t) : op_(op), name_(name), t_(t) {}
  const Check& present() const;
  const Check& rank(int expected) const;
  const Check& rank_between(int lo, int hi) const;
  // dimension `i` is `expected`, which is `what`
  const Check& dim(int i, std::int64_t expected, const char* what) const;
  const Check& shape_like(const TensorView& o, const char* other_name) const;
  const Check& dtype(DType expected) const;
  const Check& dtype_like(const TensorView& o, const char* other_name) const;
  const Check& activation_dtype() const;     // f32, f16, bf16
  const Check& weight_dtype() const;         // f32, f16, bf16 or a block format with rows of whole blocks
  const Check& last_dim_contiguous() const;  // stride 1 (or a dimension of at most 1)
  const Check& contiguous() const;
  const Check& no_overlap_in_itself() const;  // strides of an output do not fold elements together
  [[noreturn]] void fail(const std::string& expected, const std::string& got) const;

 private:
  const char* op_;
  const char* name_;
  const TensorView& t_;
};
inline Check check(const char* op, const char* name, const TensorView& t) { return Check(op, name, t); }

// An attribute out of its range.
[[noreturn]] void fail_attr(const char* op, const char* name, const std::string& expected,
                            const std::string& got);

void check_finite(const char* op, const char* name, float value);

// Whether the values of a table may be read here; a device's are checked by its kernels.
inline bool on_host(const TensorView& table) { return table.device.type == DeviceType::cpu; }

// Every value of an i32 or i64 table of rank 1 lies in [lo, hi), which is `what`. Tables on another device are checked
// there, by the kernels.
void check_values(const char* op, const char* name, const TensorView& table, std::int64_t lo, std::int64_t hi,
                  const char* what);

// Outputs that may be written in 8 bits: `out`, of x's dtype or of the codes', and the scales.
void infer_output(TensorView& out, OutputQuantization& q, const TensorView& x);
void validate_output(const char* op, const TensorView& out, const OutputQuantization& q, const TensorView& x,
                     const char* x_name);
void validate_static_scale(const char* op, const OutputQuantization& q);

// The shape of `like` as a contiguous view without data; used by infer().
TensorView contiguous_like(const TensorView& like, DType dtype);

}  // namespace kf::ops
