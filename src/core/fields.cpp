#include "core/fields.h"

#include <algorithm>

namespace kf {

const char* Field::choice() const {
  return integer >= 0 && static_cast<std::size_t>(integer) < choices.size()
             ? choices[static_cast<std::size_t>(integer)]
             : "";
}

bool Field::is_set_otherwise_than(const Field& o) const {
  switch (kind) {
    case Kind::tensor:
      return view->present() != o.view->present();
    case Kind::boolean:
    case Kind::integer:
    case Kind::choice:
      return integer != o.integer;
    case Kind::number:
      return !(number == o.number);  // a NaN is not what it was
  }
  return true;
}

class Fields::Filler final : public FieldVisitor {
 public:
  explicit Filler(Fields& fields) : fields_(fields) {}
  void tensor(const char* name, TensorView& t, Role role, bool optional) override {
    Field& f = add(name, Field::Kind::tensor);
    f.role = role;
    f.required = !optional;
    f.view = &t;
  }
  void integers(const char*) override { last().integers = true; }
  void attr(const char* name, bool& value) override { add(name, Field::Kind::boolean).integer = value; }
  void attr(const char* name, std::int64_t& value) override {
    add(name, Field::Kind::integer).integer = value;
  }
  void run_attr(const char* name, std::int64_t& value) override {
    attr(name, value);
    last().changes = true;
  }
  void attr(const char* name, float& value) override { add(name, Field::Kind::number).number = value; }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    Field& f = add(name, Field::Kind::choice);
    f.integer = value;
    f.choices = names;
  }

 private:
  Field& add(const char* name, Field::Kind kind) {
    Field& f = fields_.fields_.at(fields_.count_++);
    f.name = name;
    f.kind = kind;
    return f;
  }
  Field& last() { return fields_.fields_[fields_.count_ - 1]; }
  Fields& fields_;
};

Fields::Fields(Op op, const void* params) {
  Filler filler(*this);
  // visit() takes the struct by reference to serve writers too; this one reads.
  op_info(op).visit(const_cast<void*>(params), filler);
}

const Field* Fields::find(std::string_view name) const {
  const Field* const f = std::ranges::find_if(*this, [&](const Field& field) { return field.name == name; });
  return f == end() ? nullptr : f;
}

}  // namespace kf
