// Fields of ops as objects of Python.
#pragma once

#include "bindings.h"
#include "core/fields.h"

namespace kf::python {

// An attribute's value; of an enumeration its name.
inline nb::object attribute(const Field& f) {
  switch (f.kind) {
    case Field::Kind::boolean:
      return nb::bool_(f.integer != 0);
    case Field::Kind::integer:
      return nb::int_(f.integer);
    case Field::Kind::number:
      return nb::float_(static_cast<double>(f.number));
    case Field::Kind::choice:
    case Field::Kind::tensor:
      break;
  }
  return nb::str(f.choice());
}

}  // namespace kf::python
