// What must hold of every operand of every op, by reflection, before anything else is asked of it.
#pragma once

#include <string>

#include "kf/op.h"

namespace kf {

// Throws invalid_argument: "op: name: expected ..., got ...".
[[noreturn]] void fail_operand(const char* op, const std::string& name, const std::string& expected,
                               const std::string& got);

// Why no op can take a view of this shape and these strides; empty: it can.
std::string layout_problem(const TensorView& t);

// Where a call's first operand lies; the CPU for a call without operands.
Device device_of(Op op, const void* params);

// Throws invalid_argument, naming the operand or attribute, unless every operand lies on `device`, its elements and the
// bytes that it spans can be counted, and every enumeration has one of its values. Plans are made of what passes.
void check_layouts(Op op, const void* params, Device device);

// Throws invalid_argument, naming the operand, unless every operand that has elements has memory for them, aligned as
// its dtype is, and what is written shares no element with another operand (but for an output that lies element on element
// over an input which it may alias). Looks at addresses, so it is asked at every call. Allocates nothing.
void check_memory(Op op, const void* params);
// Of one operand; `op` and `name` are for the message.
void check_memory(const char* op, const char* name, const TensorView& t);

// Whether two views share an element. Exact where both step through memory alike, as the slices of one tensor and the
// halves of one pool do; otherwise whether the bytes that they span meet.
bool share_memory(const TensorView& a, const TensorView& b);

}  // namespace kf
