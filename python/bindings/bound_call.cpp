#include "bound_call.h"

#include <algorithm>
#include <array>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/fields.h"
#include "core/operands.h"
#include "exchange_api.h"
#include "kf/error.h"

namespace kf::python {
namespace {

// What a call needs to know of an op, made once: its struct with every default, and its fields' names in the order of
// visits, interned, so that looking a keyword up makes no string and mostly compares pointers. Guarded by the GIL, and kept
// for the life of the process.
struct Form {
  AnyParams defaults;
  std::vector<PyObject*> names;

  // The field's place in the order of visits; -1: there is none of this name.
  int place_of(PyObject* key) const {
    for (std::size_t i = 0; i < names.size(); ++i)
      if (names[i] == key) return static_cast<int>(i);
    for (std::size_t i = 0; i < names.size(); ++i)  // a string that is not interned
      if (PyUnicode_Check(key) && PyUnicode_Compare(names[i], key) == 0) return static_cast<int>(i);
    return -1;
  }
};

const Form& form_of(const OpInfo& info) {
  static std::array<Form, kNumOps> known;
  Form& form = known[static_cast<std::size_t>(info.op)];
  if (form.names.empty()) {
    form.defaults = AnyParams(info.op);
    for (const Field& f : Fields(form.defaults)) form.names.push_back(PyUnicode_InternFromString(f.name));
  }
  return form;
}

std::string text_of(nb::handle h) { return nb::cast<std::string>(nb::repr(h)); }

bool is_numpys_boolean(nb::handle given) {
  const nb::handle type = given.type();
  return nb::cast<std::string>(type.attr("__module__")) == "numpy" &&
         nb::cast<std::string_view>(type.attr("__name__")).starts_with("bool");
}

// A function of sagellm_kernel_fusion.arrays, found once.
nb::handle arrays_function(const char* name) {
  return nb::object(nb::module_::import_("sagellm_kernel_fusion.arrays").attr(name)).release();
}

bool is_numpy(nb::handle array) {
  static const nb::handle type = nb::object(nb::module_::import_("numpy").attr("ndarray")).release();
  return PyObject_TypeCheck(array.ptr(), reinterpret_cast<PyTypeObject*>(type.ptr()));
}

}  // namespace

const OpInfo& op_named(const std::string& name) {
  if (const OpInfo* info = find_op(name)) return *info;
  std::vector<std::string> names;
  for (const OpInfo& info : all_ops()) names.push_back(info.name);
  throw_invalid(fmt::format("op: expected one of {}, got {}", fmt::join(names, ", "), name));
}

class BoundCall::Binder final : public FieldVisitor {
 public:
  Binder(BoundCall& call, const nb::dict& fields, nb::handle transposed)
      : call_(call), op_(call.info_.name), transposed_(transposed), form_(form_of(call.info_)) {
    for (auto [key, value] : fields) {
      const int place = form_.place_of(key.ptr());
      if (place < 0) fail_name(key);
      values_[static_cast<std::size_t>(place)] = value;
    }
  }

  void tensor(const char* name, TensorView& t, Role role, bool optional) override {
    const nb::handle key = form_.names[next_];
    nb::handle value = take();
    const bool make = PyBool_Check(value.ptr());
    if (make && role != Role::out)
      throw_invalid(fmt::format("{}: expected an array, got {}", what(name), text_of(value)));
    const bool given = !value.is_none() && !make;
    if (given) {
      t = borrow_array(value, op_, name, role == Role::in ? Access::read : Access::write, call_.holders_);
      if (transposed_.is_valid() && t.rank == 2 && is_transposed(key)) t = t.transpose(0, 1);
      if (call_.rows_ && t.rank != 2 && t.rank > 0 &&
          (name == std::string_view("x") || name == std::string_view("out")))
        t = call_.as_rows(value, t, role != Role::in);
      if (!call_.first_array_.is_valid() && (exchange_api(value) || nb::hasattr(value, "__dlpack__"))) {
        call_.first_array_ = nb::borrow(value);
        call_.device_ = t.device;
      }
    } else if (role != Role::out && !optional) {
      throw Error(ErrorCode::invalid_argument, what(name) + ": expected an array, got none",
                  {{"op", op_}, {"operand", name}});
    }
    if (role == Role::out)
      call_.outputs_.push_back({name, &t, given ? nb::borrow(value) : nb::object(nb::none()),
                                !optional || given || (make && value.is(Py_True))});
  }
  void attr(const char* name, bool& value) override {
    nb::handle given = take_value();
    if (!given.is_valid()) return;
    if (PyBool_Check(given.ptr()) || is_numpys_boolean(given))
      value = PyObject_IsTrue(given.ptr()) == 1;
    else
      throw_invalid(fmt::format("{}: expected True or False, got {}", what(name), text_of(given)));
  }
  void attr(const char* name, std::int64_t& value) override { read(name, value, "an integer"); }
  void attr(const char* name, float& value) override { read(name, value, "a number"); }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    nb::handle given = take_value();
    if (!given.is_valid()) return;
    const char* text = PyUnicode_Check(given.ptr()) ? PyUnicode_AsUTF8AndSize(given.ptr(), nullptr) : nullptr;
    if (text != nullptr)
      for (std::size_t i = 0; i < names.size(); ++i)
        if (names[i] == std::string_view(text)) {
          value = static_cast<int>(i);
          return;
        }
    PyErr_Clear();  // a str that has no UTF-8 form
    throw_invalid(
        fmt::format("{}: expected one of {}, got {}", what(name), fmt::join(names, ", "), text_of(given)));
  }

 private:
  std::string what(const char* name) const { return fmt::format("{}: {}", op_, name); }

  [[noreturn]] void fail_name(nb::handle key) const {
    std::vector<std::string> names;
    for (PyObject* name : form_.names) names.push_back(nb::cast<std::string>(nb::handle(name)));
    throw_invalid(fmt::format("{}: no operand or attribute {}; there are {}", op_,
                              nb::cast<std::string>(nb::str(key)), fmt::join(names, ", ")));
  }

  bool is_transposed(nb::handle name) const {
    const int found = PySequence_Contains(transposed_.ptr(), name.ptr());
    if (found < 0) throw nb::python_error();
    return found == 1;
  }
  // The next field's value, where one was given: of a switch or a choice None is no default, but reads as another one.
  nb::handle take_value() { return values_[next_++]; }
  // The next field's value, None where none was given; the dictionary keeps it alive.
  nb::handle take() {
    const nb::handle value = values_[next_++];
    return value.is_valid() ? value : nb::handle(Py_None);
  }
  template <class T>
  void read(const char* name, T& value, const char* expected) {
    nb::handle given = take();
    if (!given.is_none() && !nb::try_cast(given, value, true))
      throw_invalid(fmt::format("{}: expected {}, got {}", what(name), expected, text_of(given)));
  }

  BoundCall& call_;
  const char* op_;
  nb::handle transposed_;
  const Form& form_;
  std::array<nb::handle, kMaxFields> values_;
  std::size_t next_ = 0;
};

BoundCall::BoundCall(const OpInfo& info, const nb::dict& fields, const Given& given)
    : info_(info), rows_(given.rows) {
  std::memcpy(params_.data(), form_of(info).defaults.data(), info.params_bytes);
  outputs_.reserve(4);  // few ops have more
  Binder binder(*this, fields, given.transposed);
  info.visit(params_.data(), binder);
  info.infer(params_.data());
  for (const Output& o : outputs_) {
    if (!o.wanted) {
      *o.view = TensorView{};
      continue;
    }
    // infer() leaves an output absent where the operands' ranks are wrong, and takes sizes from attributes as they are;
    // validate() says which, if it can.
    if (!o.object.is_none()) continue;
    const std::string problem = o.view->present() ? layout_problem(*o.view) : "memory";
    if (problem.empty()) continue;
    info.validate(params_.data());
    if (o.view->present()) fail_operand(info.name, o.name, problem, to_string(*o.view));
  }
}

// `t` with all dimensions but the last as one; where no view of it is that, of an input a copy is.
TensorView BoundCall::as_rows(nb::handle array, const TensorView& t, bool written) {
  TensorView matrix = t;
  matrix.rank = 2;
  matrix.shape = {t.numel() == 0 ? 0 : t.numel() / t.dim(-1), t.dim(-1)};
  matrix.strides = {t.rank == 1 ? t.dim(-1) : t.stride(-2), t.stride(-1)};
  if (!written) leading_.emplace(t.shape.begin(), t.shape.begin() + t.rank - 1);
  bool even = true;
  for (int i = t.rank - 3; i >= 0; --i)
    even &= t.shape[i] <= 1 || t.strides[i] == t.shape[i + 1] * t.strides[i + 1];
  if (even || t.numel() == 0) return matrix;
  if (written)
    throw_invalid(
        fmt::format("{}: out: expected rows that are evenly apart, got {}", info_.name, to_string(t)));
  holders_.push_back(to_array(array.attr("reshape")(-1, t.dim(-1)), fmt::format("{}: x", info_.name)));
  return holders_.back().view;
}

nb::object BoundCall::make(Output& o) {
  // As the caller has it: with the leading dimensions of its input.
  TensorView layout = *o.view;
  if (leading_) {
    std::vector<std::int64_t> shape = *leading_;
    shape.push_back(layout.dim(-1));
    layout = TensorView::contiguous(nullptr, layout.dtype, shape, layout.device);
  }
  nb::object made;
  const ExchangeApi* api = first_array_.is_valid() ? exchange_api(first_array_) : nullptr;
  if (api != nullptr) {
    made = make_tensor(*api, layout);
  } else {
    static const nb::handle allocate = arrays_function("allocate");
    nb::object like = first_array_.is_valid() ? first_array_ : nb::object(nb::none());
    made = allocate(dtype_name(layout.dtype), nb::tuple(nb::cast(shape_of(layout))), like);
    holders_.push_back(to_array(made, fmt::format("{}: {}", info_.name, o.name), Access::write));
    layout = holders_.back().view;
  }
  o.view->data = layout.data;  // contiguous either way
  o.view->device = layout.device;
  return made;
}

void BoundCall::make_outputs() {
  for (Output& o : outputs_)
    if (o.wanted && o.object.is_none()) o.object = make(o);
}

void* BoundCall::queue() const {
  if (device_.type == DeviceType::cpu) return nullptr;
  const bool named = device_.type == DeviceType::cuda || device_.type == DeviceType::rocm;  // by DLPack
  if (const ExchangeApi* api = exchange_api(first_array_);
      named && api != nullptr && api->current_stream != nullptr) {
    const DLDevice device = dlpack_device(device_);
    void* stream = nullptr;
    if (api->current_stream(device.device_type, device.device_id, &stream) != 0) throw nb::python_error();
    return stream;
  }
  static const nb::handle current =
      nb::object(nb::module_::import_("sagellm_kernel_fusion.queues").attr("current_queue")).release();
  return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(current(first_array_)));
}

nb::object BoundCall::results() {
  // What was allocated with NumPy for a library that has its own arrays becomes one of these.
  const bool convert = first_array_.is_valid() && !exchange_api(first_array_) && !is_numpy(first_array_);
  nb::object only = nb::none();
  nb::list several = nb::steal<nb::list>(nb::handle());  // made for a second one
  int count = 0;
  for (const Output& o : outputs_) {
    if (!o.wanted) continue;
    nb::object result = o.object;
    if (convert) {
      static const nb::handle as_kind_of = arrays_function("as_kind_of");
      result = as_kind_of(result, first_array_);
    }
    if (++count == 2) {
      several = nb::list();
      several.append(only);
    }
    if (count >= 2) several.append(result);
    only = result;
  }
  return count < 2 ? only : nb::object(nb::tuple(several));
}

}  // namespace kf::python
