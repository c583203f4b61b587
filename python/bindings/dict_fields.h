// Dictionaries in: structs filled in field by field.
#pragma once

#include <span>
#include <string>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bindings.h"
#include "kf/error.h"

namespace kf::python {

// FusionPolicy::Mode.
inline constexpr const char* kFusionModeNames[] = {"none", "all", "measured"};

// Reads the fields of a struct from a dictionary; every key must name one.
class DictFields {
 public:
  DictFields(const char* what, const nb::dict& values) : what_(what), values_(values) {}

  template <class T>
  DictFields& read(const char* name, T& field) {
    if (PyObject* value = PyDict_GetItemString(values_.ptr(), name)) {
      ++used_;
      // nanobind would cut a NumPy float to a whole number.
      const bool integral = std::is_integral_v<T> && !std::is_same_v<T, bool>;
      if ((integral && !PyIndex_Check(value)) || !nb::try_cast(nb::handle(value), field, true))
        throw_invalid(
            fmt::format("{}: {}: cannot be {}", what_, name, nb::cast<std::string>(nb::repr(value))));
    }
    known_ += fmt::format("{}{}", known_.empty() ? "" : ", ", name);
    return *this;
  }
  template <class E>
  DictFields& choose(const char* name, E& field, std::span<const char* const> names) {
    std::string text = names[static_cast<std::size_t>(field)];
    read(name, text);
    int i = 0;
    for (const char* n : names) {
      if (text == n) {
        field = static_cast<E>(i);
        return *this;
      }
      ++i;
    }
    throw_invalid(
        fmt::format("{}: {}: expected one of {}, got {}", what_, name, fmt::join(names, ", "), text));
  }
  void finish() const {
    if (used_ != values_.size())
      throw_invalid(fmt::format("{}: expected fields among {}, got {}", what_, known_,
                                nb::cast<std::string>(nb::str(values_.keys()))));
  }

 private:
  const char* what_;
  const nb::dict& values_;
  std::size_t used_ = 0;
  std::string known_;
};

}  // namespace kf::python
