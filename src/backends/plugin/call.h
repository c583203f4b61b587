// A call as a plug-in's rows see it: what stands behind kf_call.
#pragma once

#include <array>

#include "core/fields.h"
#include "kf/kf_c.h"

namespace kf::plugin {

// The kf_host that every plug-in is given.
const kf_host& host();

}  // namespace kf::plugin

// Over `params`, which it does not own: shapes, strides and memory are theirs. Made on the stack of each call.
struct kf_call {
  // `listed` are the fields that may be asked for, then null.
  kf_call(kf::Op op, const void* params, const char* const* listed = nullptr);
  kf_call(const kf_call&) = delete;

  int device() const;  // its number, as the first operand has it
  // The field that a row asks for, if it is among those that the row lists; else the name is kept in `bad_name`.
  const kf::Field* asked_for(const char* name, kf::Field::Kind kind) const;

  kf::Fields fields;
  std::array<DLManagedTensor, kf::kMaxFields> tensors;  // of the fields that are given
  const char* const* listed;
  // What was asked for and is not there, with the last byte zero. A call is one thread's.
  mutable std::array<char, 64> bad_name{};
};
