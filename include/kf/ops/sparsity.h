// A weight of which only the elements that are not zero are stored.
#pragma once

#include "kf/op.h"

namespace kf {

// Where the values of a sparse weight [out, in] belong. The operand itself holds the values alone, those of a row in the
// order of its columns:
//   n:m            of every m neighbours of a row exactly n are stored: [out, in / m * n], its rows contiguous
//   unstructured   any number of each row: [values], rows one after another, row r's in [offsets[r], offsets[r + 1])
// All other elements are 0. Values are f32, f16 or bf16, or int4, i8 or fp8 with scales beside them (Quantization), whose
// groups are those of the weight's columns, not of the values.
struct Sparsity {
  // u8 [out, ceil(in / 8)], its rows contiguous; absent: the weight is dense. Bit k % 8 (bit 0 the lowest) of byte k / 8
  // of a row says that column k has a value; bits from `in` on are 0. `sparsify` makes it and `check_sparse` checks it:
  // calls do not read it through, but a wrong one never leads them out of the operands.
  TensorView mask;
  TensorView offsets;  // i64 [out + 1], of unstructured weights: ascending from 0 to the number of values
  std::int64_t n = 0;  // of m: 2, 4, 8, 16 or 32; both 0 for unstructured weights
  std::int64_t m = 0;

  bool present() const { return mask.present(); }

  // By the operand's name followed by _mask, _offsets, _n and _m: a rule that names an operand means these too.
  void visit(FieldVisitor& v, const char* mask_name, const char* offsets_name, const char* n_name,
             const char* m_name) {
    v.opt_weight(mask_name, mask);
    v.opt_weight(offsets_name, offsets);
    v.attr(n_name, n);
    v.attr(m_name, m);
  }
};

}  // namespace kf
