// Cases: what an op is asked in tests, benchmarks, the support matrix and documentation, written once.
// A case file adds its op's cases to the list; the runner (runner.h) drives every kernel of the op over them.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kf/op.h"

namespace kf::cases {

// Makes operands. Reproducible: a case's numbers depend on its name alone.
class Maker {
 public:
  explicit Maker(std::string_view seed);
  // Normal values with this standard deviation, rounded to `dtype` (block formats: quantized as GGUF does).
  TensorView normal(DType dtype, std::initializer_list<std::int64_t> shape, float stddev = 1.0f,
                    float mean = 0.0f);
  TensorView uniform(DType dtype, std::initializer_list<std::int64_t> shape, float lo, float hi);
  TensorView integers(DType dtype, const std::vector<std::int64_t>& values);  // i32 or i64, rank 1
  TensorView table(const std::vector<std::vector<std::int32_t>>& rows);       // i32, rank 2
  TensorView filled(DType dtype, std::initializer_list<std::int64_t> shape, float value);
  // The same values in a tensor whose rows (all but the last dimension) are `pad` elements apart, and whose leading
  // dimensions do not merge into one; what lies between is NaN (float) so that a read past a row shows.
  TensorView strided(const TensorView& t, std::int64_t pad);
  std::mt19937_64& rng() { return rng_; }
  std::vector<Tensor>& storage() { return storage_; }

 private:
  std::mt19937_64 rng_;
  std::vector<Tensor> storage_;
};

// How far a kernel may be from the reference, derived from the arithmetic and not tuned:
//   |got - ref| <= atol + rtol * |ref|,
// where atol is given relative to the scale of the terms that were summed: see each case file's derivation.
// Outputs of codes (int4, i8, fp8) may be so many codes apart. A code of fp8 is the distance of neighbours, but where these lie
// closer than int8's would, `code_floor` of the largest. What is NaN or infinite must be so in both, whatever the codes.
struct Tolerance {
  double rtol = 0, atol = 0;
  int codes = 0;
  double code_floor = 1.0 / 128;
  // Added to atol on a device: what an intermediate is off by that its matrix units round to 16 bits, or its vendor's operators
  // to the dtype or compute in a textbook's form.
  double device_atol = 0;
};

struct Case {
  std::string name;  // "rms_norm/f32/8192x4096": unique
  Op op{};
  std::function<AnyParams(Maker&)>
      make;  // inputs filled; outputs absent (the runner allocates what infer() says)
  Tolerance tolerance;
  bool bench = false;  // of benchmark size: timed, and checked in the same run; not part of the tests
  // Outputs that may be absent in inference but that this case wants ("lse").
  std::vector<std::string> want;
};

using CaseList = std::vector<Case>;

// Unit roundoff of a dtype: half the distance of neighbouring values at 1 (f32 2^-24, f16 2^-11, bf16 2^-8).
double unit_roundoff(DType dtype);

// One function a file in this folder; all_cases() calls them in this order.
void add_linear_cases(CaseList& list);
void add_norm_cases(CaseList& list);
void add_elementwise_cases(CaseList& list);
void add_quantized_output_cases(CaseList& list);
void add_attention_cases(CaseList& list);
void add_rope_cases(CaseList& list);
void add_sampling_cases(CaseList& list);

const CaseList& all_cases();

// Benchmark sizes of accelerators, by the same functions; not part of all_cases().
void add_linear_device_cases(CaseList& list);
void add_norm_device_cases(CaseList& list);
void add_elementwise_device_cases(CaseList& list);
void add_rope_device_cases(CaseList& list);
void add_attention_device_cases(CaseList& list);
void add_sampling_device_cases(CaseList& list);
const CaseList& device_cases();

// Where an element is, given its flat (row-major) index, as TensorView::at() takes it.
std::int64_t element_offset(const TensorView& t, std::int64_t flat_index);
// Reads any element of a float or integer tensor as double, honouring strides (block formats decoded).
double element(const TensorView& t, std::int64_t flat_index);
// Rounds and stores. Float and integer dtypes.
void set_element(const TensorView& t, std::int64_t flat_index, double value);

}  // namespace kf::cases
