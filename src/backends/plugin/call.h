// A call as a plug-in's rows see it: what stands behind kf_call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kf/kf_c.h"
#include "kf/op.h"

namespace kf::plugin {

// More than any op has (a call is made on the stack).
inline constexpr int kMaxFields = 64;

struct Field {
  enum class Kind : std::uint8_t { tensor, boolean, integer, number, choice };
  const char* name = nullptr;
  Kind kind{};
  bool required = false;  // an operand that the op cannot do without
  bool changes = false;   // may differ between the runs of a plan
  DType dtype{};
  DLManagedTensor tensor{};  // ndim -1: absent
  union {
    std::int64_t integer = 0;  // booleans too
    double number;
    const char* choice;
  };

  bool is_set_otherwise_than(const Field& o) const;
};

// The kf_host that every plug-in is given.
const kf_host& host();

}  // namespace kf::plugin

// Over `params`, which it does not own: shapes, strides and memory are theirs.
struct kf_call {
  // `listed` are the fields that may be asked for, then null.
  kf_call(kf::Op op, const void* params, const char* const* listed = nullptr);
  kf_call(const kf_call&) = delete;

  std::span<const kf::plugin::Field> fields() const { return {all.data(), static_cast<std::size_t>(count)}; }
  const kf::plugin::Field* find(std::string_view name) const;
  int device() const;  // its number, as the first operand has it
  // The field that a row asks for, if it is among those that the row lists; else the name is kept in `bad_name`.
  const kf::plugin::Field* asked_for(const char* name, kf::plugin::Field::Kind kind) const;

  std::array<kf::plugin::Field, kf::plugin::kMaxFields> all;
  int count = 0;
  const char* const* listed;
  // What was asked for and is not there, with the last byte zero. A call is one thread's.
  mutable std::array<char, 64> bad_name{};
};
