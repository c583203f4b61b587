// The fields of a call by name: the operands and attributes of its Params struct, and how they are set. What treats calls of any
// op alike without a struct of its own (plug-ins, CUDA source, kernels in Python, tables of what kernels know) walks them here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kf/op.h"

namespace kf {

struct Field {
  enum class Kind : std::uint8_t { tensor, boolean, integer, number, choice };

  const char* name = nullptr;
  Kind kind{};
  // Of an operand.
  Role role{};
  bool required = false;             // the op cannot do without it
  bool integers = false;             // i32 or i64
  const TensorView* view = nullptr;  // in the Params struct; present or not
  // Of an attribute.
  bool changes = false;      // may differ between the runs of a plan
  std::int64_t integer = 0;  // a boolean as 0 or 1, a choice as an index into `choices`
  float number = 0;
  std::span<const char* const> choices = {};

  bool is_tensor() const { return kind == Kind::tensor; }
  bool is_given() const { return is_tensor() && view->present(); }
  const char* choice() const;  // its name; "" where the index is none of them
  // Operands differ by being there or not, attributes by their value.
  bool is_set_otherwise_than(const Field& o) const;
};

// More than any op has: fields are walked on the stack, without allocating.
inline constexpr std::size_t kMaxFields = 64;

class Fields {
 public:
  Fields(Op op, const void* params);
  explicit Fields(const AnyParams& params) : Fields(params.op(), params.data()) {}

  std::size_t size() const { return count_; }
  const Field& operator[](std::size_t i) const { return fields_[i]; }
  const Field* begin() const { return fields_.data(); }
  const Field* end() const { return fields_.data() + count_; }
  const Field* find(std::string_view name) const;  // null: no such field
  std::size_t index_of(const Field& f) const { return static_cast<std::size_t>(&f - fields_.data()); }

 private:
  class Filler;
  std::array<Field, kMaxFields> fields_;
  std::size_t count_ = 0;
};

// The first field that is set otherwise than in `defaults` and is not known(field): what a kernel that minds the known ones only
// has to refuse. Null: there is none.
template <class Known>
const Field* set_beyond(const Fields& call, const Fields& defaults, const Known& known) {
  for (const Field& f : call)
    if (f.is_set_otherwise_than(defaults[call.index_of(f)]) && !known(f)) return &f;
  return nullptr;
}

}  // namespace kf
