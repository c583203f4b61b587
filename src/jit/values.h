// What the parameters of a kernel's function are given, by the names of an op's fields.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/fields.h"

namespace kf::jit {

// A size with a name of its own: of the first of these operands that the op has.
struct NamedSize {
  const char* name;
  std::array<const char*, 2> operands;
  bool rows;  // the product of all dimensions but the last; else:
  int dim;    // as the op has the operand, whichever way round the function has it
};
// N, D, D_in, D_out, H: as LaunchShape, CudaSource and Triton kernels of the user's have them.
std::span<const NamedSize> named_sizes();

// Where a value is found among an op's fields, counted as visit() visits them.
struct ValueSource {
  enum class Kind : std::uint8_t { pointer, shape, stride, numel, rows, attribute };
  Kind kind{};
  std::size_t field = 0;
  int dim = 0;              // shape, stride: as given, negative from the end
  bool transposed = false;  // shape, stride: of a matrix that the function has the other way round
};

// Throws invalid_argument where the op has nothing of this name.
ValueSource value_source(Op op, std::string_view name, const std::vector<std::string>& transposed);

struct Value {
  enum class Kind : std::uint8_t { pointer, integer, real };
  Kind kind{};
  const void* pointer = nullptr;
  std::int64_t integer = 0;
  double real = 0;
};

Value value_of(const Fields& fields, const ValueSource& source);

}  // namespace kf::jit
