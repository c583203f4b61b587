// One entry for every op, driven by the op's own description of its fields.
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bindings.h"
#include "kf/error.h"

namespace kf::python {
namespace {

const OpInfo& find(const std::string& name) {
  if (const OpInfo* info = find_op(name)) return *info;
  std::vector<std::string> names;
  for (const OpInfo& info : all_ops()) names.push_back(info.name);
  throw_invalid(fmt::format("op: expected one of {}, got {}", fmt::join(names, ", "), name));
}

// Fills params from keyword arguments. None is an absent operand or an attribute left at its default; True
// for an output is one to be made.
class Binder final : public FieldVisitor {
 public:
  Binder(const char* op, const nb::dict& fields) : op_(op), fields_(fields) {}

  struct Output {
    const char* name;
    TensorView* view;
    nb::object object;  // none: to be made
    bool wanted;
  };
  std::vector<Output> outputs;
  nb::object first_array;  // whose kind the outputs shall be

  void tensor(const char* name, TensorView& t, Role role, bool optional) override {
    nb::object value = take(name);
    const bool make = PyBool_Check(value.ptr());
    if (make && role != Role::out)
      throw_invalid(fmt::format("{}: expected an array, got {}", what(name), text_of(value)));
    const bool given = !value.is_none() && !make;
    if (given) {
      arrays_.push_back(to_array(value, what(name), role == Role::in ? Access::read : Access::write));
      t = arrays_.back().view;
      if (!first_array.is_valid() && nb::hasattr(value, "__dlpack__")) first_array = value;
    } else if (role != Role::out && !optional) {
      throw Error(ErrorCode::invalid_argument, what(name) + ": expected an array, got none",
                  {{"op", op_}, {"operand", name}});
    }
    if (role == Role::out)
      outputs.push_back({name, &t, given ? value : nb::object(nb::none()),
                         !optional || given || (make && nb::cast<bool>(value))});
  }
  void attr(const char* name, bool& value) override { read(name, value, "True or False"); }
  void attr(const char* name, std::int64_t& value) override { read(name, value, "an integer"); }
  void attr(const char* name, float& value) override { read(name, value, "a number"); }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    nb::object given = take(name);
    if (given.is_none()) return;
    std::string text;
    if (nb::try_cast(given, text, false))
      for (std::size_t i = 0; i < names.size(); ++i)
        if (text == names[i]) {
          value = static_cast<int>(i);
          return;
        }
    throw_invalid(
        fmt::format("{}: expected one of {}, got {}", what(name), fmt::join(names, ", "), text_of(given)));
  }

  // Every keyword must have named a field.
  void finish() const {
    if (taken_ == fields_.size()) return;
    for (auto [key, value] : fields_)
      if (const std::string name = nb::cast<std::string>(nb::str(key)); !known_.contains(name))
        throw_invalid(
            fmt::format("{}: no operand or attribute {}; there are {}", op_, name, fmt::join(names_, ", ")));
  }

 private:
  std::string what(const char* name) const { return fmt::format("{}: {}", op_, name); }
  static std::string text_of(nb::handle h) { return nb::cast<std::string>(nb::repr(h)); }

  nb::object take(const char* name) {
    known_.insert(name);
    names_.push_back(name);
    PyObject* value = PyDict_GetItemString(fields_.ptr(), name);
    if (value == nullptr) return nb::none();
    ++taken_;
    return nb::borrow(value);
  }
  template <class T>
  void read(const char* name, T& value, const char* expected) {
    nb::object given = take(name);
    if (!given.is_none() && !nb::try_cast(given, value, true))
      throw_invalid(fmt::format("{}: expected {}, got {}", what(name), expected, text_of(given)));
  }

  const char* op_;
  const nb::dict& fields_;
  std::vector<Array> arrays_;
  std::set<std::string> known_;
  std::vector<std::string> names_;
  std::size_t taken_ = 0;
};

// Params with every wanted output's layout inferred.
struct BoundCall {
  AnyParams params;
  Binder binder;

  BoundCall(const OpInfo& info, const nb::dict& fields) : params(info.op), binder(info.name, fields) {
    params.visit(binder);
    binder.finish();
    info.infer(params.data());
    for (const Binder::Output& o : binder.outputs) {
      if (!o.wanted) *o.view = TensorView{};
      // infer() leaves an output absent where the operands' ranks are wrong; validate() says which.
      else if (!o.view->present())
        info.validate(params.data());
    }
  }
};

// Runs an op. Returns (name, array) of its outputs; those not given are made by allocate(dtype, shape, like).
nb::list call(const std::string& op, const nb::dict& fields, const nb::object& allocate,
              const Selection& selection) {
  const OpInfo& info = find(op);
  BoundCall bound(info, fields);
  std::vector<Array> made;
  nb::list results;
  for (Binder::Output& o : bound.binder.outputs) {
    if (!o.wanted) continue;
    if (o.object.is_none()) {
      nb::object like =
          bound.binder.first_array.is_valid() ? bound.binder.first_array : nb::object(nb::none());
      o.object = allocate(dtype_name(o.view->dtype), nb::tuple(nb::cast(shape_of(*o.view))), like);
      made.push_back(to_array(o.object, fmt::format("{}: {}", op, o.name), Access::write));
      *o.view = made.back().view;
    }
    results.append(nb::make_tuple(o.name, o.object));
  }
  {
    nb::gil_scoped_release release;
    default_dispatcher(info.op, bound.params.data()).run(info.op, bound.params.data(), selection);
  }
  return results;
}

nb::list explain(const std::string& op, const nb::dict& fields, const Selection& selection) {
  const OpInfo& info = find(op);
  BoundCall bound(info, fields);
  nb::list rows;
  for (const Explained& e :
       default_dispatcher(info.op, bound.params.data()).explain(info.op, bound.params.data(), selection)) {
    nb::dict d;
    d["kernel"] = e.kernel;
    d["families"] = e.families;
    d["selected"] = e.selected;
    d["supported"] = e.supported;
    d["allowed"] = e.allowed;
    d["reason"] = e.reason;
    rows.append(d);
  }
  return rows;
}

// A quantized weight's companions as views; `holders` keep their memory.
Quantization companions(const nb::object& scales, const nb::object& zeros, std::int64_t group_size,
                        Access access, std::vector<Array>& holders) {
  Quantization q;
  holders.push_back(to_array(scales, "scales", access));
  q.scales = holders.back().view;
  if (!zeros.is_none()) {
    holders.push_back(to_array(zeros, "zeros", access));
    q.zeros = holders.back().view;
  }
  q.group_size = group_size;
  return q;
}

// `data` is bytes, since not every library has the dtype.
void quantize_array(const nb::object& values, const nb::object& data, const std::string& dtype,
                    const nb::object& scales, const nb::object& zeros, std::int64_t group_size) {
  std::vector<Array> holders;
  const Quantization q = companions(scales, zeros, group_size, Access::write, holders);
  const Array from = to_array(values, "x"), bytes = to_array(data, "data", Access::write);
  const TensorView to = TensorView::contiguous(bytes.view.data, parse_dtype(dtype), shape_of(from.view));
  if (!bytes.view.is_contiguous() || to.nbytes() != bytes.view.nbytes())
    throw_invalid(
        fmt::format("data: expected {} contiguous bytes, got {}", to.nbytes(), to_string(bytes.view)));
  nb::gil_scoped_release release;
  quantize(from.view, to, q);
}

void dequantize_array(const nb::object& data, const nb::object& scales, const nb::object& zeros,
                      std::int64_t group_size, const nb::object& values) {
  std::vector<Array> holders;
  const Quantization q = companions(scales, zeros, group_size, Access::read, holders);
  const Array from = to_array(data, "data"), to = to_array(values, "values", Access::write);
  nb::gil_scoped_release release;
  dequantize(from.view, q, to.view);
}

// An op's fields in order, with defaults: what the Python functions and `kf explain` are checked against.
class FieldLister final : public FieldVisitor {
 public:
  nb::list fields;
  void tensor(const char* name, TensorView&, Role role, bool optional) override {
    nb::dict d = add(name, "tensor");
    d["role"] = role == Role::in ? "in" : role == Role::out ? "out" : "inout";
    d["optional"] = optional;
    d["integers"] = false;
  }
  void integers(const char*) override { nb::cast<nb::dict>(fields[nb::len(fields) - 1])["integers"] = true; }
  void attr(const char* name, bool& value) override { add(name, "bool")["default"] = value; }
  void attr(const char* name, std::int64_t& value) override { add(name, "int")["default"] = value; }
  void attr(const char* name, float& value) override { add(name, "float")["default"] = value; }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    nb::dict d = add(name, "choice");
    d["default"] = names[static_cast<std::size_t>(value)];
    d["choices"] = nb::cast(std::vector<std::string>(names.begin(), names.end()));
  }

 private:
  nb::dict add(const char* name, const char* kind) {
    nb::dict d;
    d["name"] = name;
    d["kind"] = kind;
    fields.append(d);
    return d;
  }
};

}  // namespace

Selection make_selection(const std::vector<std::string>& families, const std::string& kernel,
                         bool allow_fallback) {
  Selection s;
  s.kernel = kernel;
  s.allow_fallback = allow_fallback;
  s.families = 0;
  for (const std::string& name : families) {
    unsigned bit = 1;
    while (bit <= kCustom && family_names(bit) != name) bit <<= 1;
    if (bit > kCustom)
      throw_invalid("families: expected reference, vanilla, fused, library or custom, got " + name);
    s.families |= bit;
  }
  return s;
}

void bind_ops(nb::module_& m) {
  nb::class_<Selection>(m, "Selection", "Which kernels a call may use.")
      .def(
          "__init__",
          [](Selection* self, const std::vector<std::string>& families, const std::string& kernel,
             bool allow_fallback) { new (self) Selection(make_selection(families, kernel, allow_fallback)); },
          nb::arg("families") = std::vector<std::string>{"custom", "fused", "library"},
          nb::arg("kernel") = "", nb::arg("allow_fallback") = false)
      .def_ro("kernel", &Selection::kernel)
      .def_ro("allow_fallback", &Selection::allow_fallback)
      .def_prop_ro("families", [](const Selection& s) { return family_names(s.families); });
  m.def(
      "ops",
      [] {
        nb::dict all;
        for (const OpInfo& info : all_ops()) {
          AnyParams params(info.op);
          FieldLister lister;
          params.visit(lister);
          nb::dict d;
          d["summary"] = info.summary;
          d["fields"] = lister.fields;
          all[info.name] = d;
        }
        return all;
      },
      "Every op by name: its summary and its fields in order.");
  m.def("call", &call, nb::arg("op"), nb::arg("fields"), nb::arg("allocate"),
        nb::arg("selection") = Selection{}, "Runs an op; returns [(output name, array)].");
  m.def("explain", &explain, nb::arg("op"), nb::arg("fields"), nb::arg("selection") = Selection{},
        "Every kernel of the op in order: taken, or why not.");
  m.def("quantize", &quantize_array, nb::arg("values"), nb::arg("data"), nb::arg("dtype"), nb::arg("scales"),
        nb::arg("zeros").none(), nb::arg("group_size"), "Rounds values to data and fills scales and zeros.");
  m.def("dequantize", &dequantize_array, nb::arg("data"), nb::arg("scales"), nb::arg("zeros").none(),
        nb::arg("group_size"), nb::arg("values"), "values = (data - zeros) * scales");
}

}  // namespace kf::python
