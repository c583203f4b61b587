// What the parameters of a kernel's function are given, by the names of an op's fields.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kf/op.h"

namespace kf::jit {

// Where a value is found among an op's fields, counted as visit() visits them.
struct ValueSource {
  enum class Kind : std::uint8_t { pointer, shape, stride, numel, rows, attribute };
  Kind kind{};
  int field = 0;
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

// The fields of a call, where they lie. Made without allocating.
class Fields final : public FieldVisitor {
 public:
  struct Field {
    const char* name;
    const TensorView* tensor = nullptr;
    Role role{};
    const bool* flag = nullptr;
    const std::int64_t* integer = nullptr;
    const float* real = nullptr;
    int choice = 0;
    bool of_choice = false;
  };

  Fields(Op op, const void* params);
  int count() const { return count_; }
  const Field& operator[](int i) const { return fields_[static_cast<std::size_t>(i)]; }
  int find(std::string_view name) const;  // -1: none
  Value value(const ValueSource& source) const;

  void tensor(const char* name, TensorView& t, Role role, bool optional) override;
  void attr(const char* name, bool& value) override;
  void attr(const char* name, std::int64_t& value) override;
  void attr(const char* name, float& value) override;
  void attr(const char* name, int& value, std::span<const char* const> names) override;

 private:
  static constexpr std::size_t kMax = 128;
  Field& add(const char* name);
  std::array<Field, kMax> fields_;
  int count_ = 0;
};

}  // namespace kf::jit
