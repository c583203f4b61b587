// Arrays in: DLPack, zero copy. Element types that a caller's library cannot export (bf16 and fp8 of NumPy,
// GGUF's block formats) come as bytes with a name.
#include <fmt/format.h>

#include "bindings.h"
#include "exchange_api.h"
#include "kf/dlpack.h"
#include "kf/error.h"

namespace kf::python {
namespace {

// A view of `data`'s memory under another element type and shape.
struct TypedArray {
  Array array;
  nb::object data;  // whose memory it is; None of a layout
};

// The types that ml_dtypes adds to NumPy, by their names there, the integers that carry their bits, and what
// DLPack calls them.
struct CarriedType {
  const char* name;
  const char* carrier;
  DLDataType type;
};
constexpr CarriedType kCarriedTypes[] = {
    {"bfloat16", "uint16", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1}},
    {"float8_e4m3fn", "uint8", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float8_E4M3FN), 8, 1}},
    {"float8_e5m2", "uint8", {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float8_E5M2), 8, 1}},
};

std::string python_type_name(nb::handle object) {
  return nb::cast<std::string>(nb::str(object.type().attr("__name__")));
}

std::string python_dtype_name(nb::handle object) {
  nb::object dtype = nb::getattr(object, "dtype", nb::none());
  return dtype.is_none() ? "" : nb::cast<std::string>(nb::str(dtype));
}

const CarriedType* carried_type(nb::handle object) {
  const std::string name = python_dtype_name(object);
  for (const CarriedType& t : kCarriedTypes)
    if (name == t.name) return &t;
  return nullptr;
}

TensorView contiguous_like(const TensorView& t) {
  return TensorView::contiguous(t.data, t.dtype, shape_of(t), t.device);
}

// Before the first tensor of an accelerator that DLPack has no name for, or that may show itself as CUDA's: whose it is.
void name_device(int device_type) {
  static bool cuda_is_known = false;  // guarded by the GIL
  if (device_type == kDLCPU || (device_type == kDLCUDA && cuda_is_known) || named_device(device_type)) return;
  nb::module_::import_("sagellm_kernel_fusion.vendors").attr("name_device")(device_type);
  cuda_is_known |= device_type == kDLCUDA;
}

TensorView view_of(const nb::ndarray<nb::ro>& a, const std::optional<DLDataType>& carried,
                   const std::string& what) {
  const DLDataType own{a.dtype().code, a.dtype().bits, a.dtype().lanes};
  const DLTensor d{const_cast<void*>(static_cast<const void*>(a.data())),
                   {static_cast<DLDeviceType>(a.device_type()), a.device_id()},
                   static_cast<int>(a.ndim()),
                   carried.value_or(own),
                   const_cast<std::int64_t*>(a.shape_ptr()),
                   const_cast<std::int64_t*>(a.stride_ptr()),
                   0};
  name_device(d.device.device_type);
  try {
    const TensorView t = from_dlpack(d);
    // Exporters give an empty array any strides.
    return t.numel() > 0 ? t : contiguous_like(t);
  } catch (const Error& e) {
    throw Error(e.code(), fmt::format("{}: {}", what, e.what()), e.context());
  }
}

// JAX's arrays are values that may be shared, though they export memory as if it could be written.
bool is_immutable(nb::handle object) {
  nb::object module = nb::getattr(object.type(), "__module__", nb::none());
  return nb::isinstance<nb::str>(module) && nb::cast<std::string_view>(module).starts_with("jax");
}

std::optional<nb::ndarray<nb::ro>> import_array(nb::handle object, Access access) {
  if (access == Access::write) {
    if (is_immutable(object)) return std::nullopt;
    nb::ndarray<> a;
    if (nb::try_cast(object, a, false)) return nb::ndarray<nb::ro>(a);
  } else {
    nb::ndarray<nb::ro> a;
    if (nb::try_cast(object, a, false)) return a;
  }
  return std::nullopt;
}

// Results carry no gradient, so an input that asks for one would lose it silently.
bool wants_gradients(nb::handle object) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  nb::object wanted = nb::getattr(object, nb::handle(name), nb::none());
  return wanted.is(Py_True);
}

// Integers have none, and asking costs.
bool may_have_gradients(const DLDataType& type) { return type.code != kDLInt && type.code != kDLUInt; }

void refuse_gradients(nb::handle object, const std::string& what) {
  if (!wants_gradients(object)) return;
  nb::handle torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (torch.is_valid() && !nb::cast<bool>(torch.attr("is_grad_enabled")())) return;
  throw_invalid(what +
                ": expected a tensor without gradients, got one that requires them: pass x.detach(), or call "
                "under torch.inference_mode()");
}

// Why an array's library does not export it: a tensor of torch on "meta" or with another layout, NumPy's of another byte
// order. Empty where it does, or has nothing to say.
std::string why_not_exported(nb::handle object) {
  if (!nb::hasattr(object, "__dlpack__")) return "";
  try {
    object.attr("__dlpack__")();
    return "";
  } catch (nb::python_error& error) {
    const std::string said = nb::cast<std::string>(nb::str(error.value()));
    return ", which its library does not export: " + said.substr(0, said.find('\n'));
  }
}

[[noreturn]] void refuse(nb::handle object, const std::string& what, Access access) {
  if (access == Access::write && import_array(object, Access::read))
    throw_invalid(
        what +
        ": expected an array that may be written, got a read-only one (JAX's always are: take the result "
        "that the call returns)");
  const std::string dtype = python_dtype_name(object);
  throw_invalid(fmt::format("{}: expected an array (anything with __dlpack__), got {}{}{}", what,
                            python_type_name(object), dtype.empty() ? "" : " of dtype " + dtype,
                            why_not_exported(object)));
}

TypedArray make_typed(nb::object data, const std::string& dtype_name_,
                      const std::vector<std::int64_t>& shape) {
  const DType dtype = parse_dtype(dtype_name_);
  if (shape.size() > static_cast<std::size_t>(kMaxRank))
    throw_invalid(fmt::format("shape: expected at most {} dimensions, got {}", kMaxRank, shape.size()));
  double elements = 1;
  for (std::int64_t n : shape) {
    if (n < 0) throw_invalid(fmt::format("shape: expected sizes of at least 0, got {}", n));
    elements *= static_cast<double>(n);
  }
  if (elements > 0x1p60)
    throw_invalid(fmt::format("shape: {:g} elements are more than memory can hold", elements));
  const DTypeInfo& info = dtype_info(dtype);
  if (info.block_elems > 1 && (shape.empty() || shape.back() % info.block_elems != 0))
    throw_invalid(fmt::format("shape: expected a last dimension of whole blocks of {} for {}, got {}",
                              info.block_elems, info.name, shape.empty() ? 0 : shape.back()));
  TypedArray t{{}, data};
  if (data.is_none()) {  // a layout without memory: what explain() takes
    t.array.view = TensorView::contiguous(nullptr, dtype, shape);
    return t;
  }
  t.array = to_array(data, "data");
  if (!t.array.view.is_contiguous())
    throw_invalid("data: expected contiguous bytes, got " + to_string(t.array.view));
  const TensorView typed = TensorView::contiguous(t.array.view.data, dtype, shape, t.array.view.device);
  if (typed.nbytes() != t.array.view.nbytes())
    throw_invalid(fmt::format("data: expected {} bytes for {}, got {}", typed.nbytes(), to_string(typed),
                              t.array.view.nbytes()));
  t.array.view = typed;
  return t;
}

// int4 as the bytes that hold it, two to a byte, as QuantizedTensor has it: no library's arrays have the type.
TensorView in_bytes(const TensorView& t) {
  if (t.dtype != DType::int4 || t.rank < 1) return t;
  TensorView bytes = t;
  bytes.dtype = DType::u8;
  bytes.shape[t.rank - 1] /= 2;
  for (int i = 0; i + 1 < t.rank; ++i) bytes.strides[i] /= 2;
  return bytes;
}

// The memory as NumPy has it, written where it is written: the types that NumPy lacks as the integers that carry their
// bits. `owner` keeps the memory.
nb::object numpy_view(const TensorView& elements, nb::handle owner) {
  const TensorView t = in_bytes(elements);
  if (t.data == nullptr && t.numel() > 0)
    throw_invalid("numpy: expected an array with memory, got a layout " + to_string(t));
  if (t.device.type != DeviceType::cpu)
    throw_invalid("numpy: expected memory of the host, got " + to_string(t.device));
  const DTypeInfo& info = dtype_info(t.dtype);
  if (info.block_elems > 1) throw_invalid(fmt::format("numpy: {} is no type of elements", info.name));
  nb::dlpack::dtype type{};
  const DLDataType own = dlpack_dtype(t.dtype);
  type.code = own.code;
  type.bits = own.bits;
  type.lanes = own.lanes;
  for (const CarriedType& c : kCarriedTypes)
    if (c.type.code == own.code && c.type.bits == own.bits)
      type.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt);
  std::size_t shape[kMaxRank];
  for (int i = 0; i < t.rank; ++i) shape[i] = static_cast<std::size_t>(t.shape[i]);
  return nb::cast(
      nb::ndarray<nb::numpy>(t.data, static_cast<std::size_t>(t.rank), shape, owner, t.strides.data(), type));
}

// The memory as a library has it (without one: as what that library's from_dlpack takes), on whichever device it lies.
// `owner` keeps the memory; null: it is lent, and somebody else does.
template <typename... Library>
nb::object library_view(const char* what, const TensorView& elements, nb::handle owner) {
  const TensorView t = in_bytes(elements);
  if (t.data == nullptr && t.numel() > 0)
    throw_invalid(fmt::format("{}: expected an array with memory, got a layout {}", what, to_string(t)));
  const DLDataType own = dlpack_dtype(t.dtype);
  nb::dlpack::dtype type{};
  type.code = own.code;
  type.bits = own.bits;
  type.lanes = own.lanes;
  std::size_t shape[kMaxRank];
  for (int i = 0; i < t.rank; ++i) shape[i] = static_cast<std::size_t>(t.shape[i]);
  const DLDevice device = dlpack_device(t.device);
  const nb::ndarray<Library...> array(t.data, static_cast<std::size_t>(t.rank), shape, owner,
                                      t.strides.data(), type, device.device_type, device.device_id);
  return nb::cast(array, nb::rv_policy::reference);  // never a copy
}

// Whose memory a typed array's is; null: it is lent.
nb::handle owner_of(nb::handle typed) {
  return nb::cast<const TypedArray&>(typed).data.is_valid() ? typed : nb::handle();
}

}  // namespace

nb::object lend(const TensorView& view) {
  TypedArray t;
  t.array.view = view;
  return nb::cast(std::move(t));
}

Array to_array(nb::handle object, const std::string& what, Access access) {
  if (nb::isinstance<TypedArray>(object)) {
    const TypedArray& typed = nb::cast<const TypedArray&>(object);
    // Refuses what may not be written; a layout without memory may stand for an output.
    if (access == Access::write && typed.array.view.data != nullptr) to_array(typed.data, what, access);
    return typed.array;
  }
  refuse_gradients(object, what);
  std::optional<nb::ndarray<nb::ro>> a = import_array(object, access);
  std::optional<DLDataType> carried;
  if (!a)
    if (const CarriedType* t = carried_type(object)) {
      // The view's reference keeps the memory; the object itself need not stay.
      a = import_array(object.attr("view")(t->carrier), access);
      carried = t->type;
    }
  if (!a) refuse(object, what, access);
  return {view_of(*a, carried, what), *a};
}

TensorView borrow_array(nb::handle object, const char* op, const char* operand, Access access,
                        std::vector<Array>& holders) {
  if (const ExchangeApi* api = exchange_api(object)) {
    DLTensor t;
    if (api->borrow(object.ptr(), &t) == 0) {
      if (may_have_gradients(t.dtype) && wants_gradients(object))
        refuse_gradients(object, fmt::format("{}: {}", op, operand));
      try {
        name_device(t.device.device_type);
        const TensorView view = from_dlpack(t);
        return view.numel() > 0 ? view : contiguous_like(view);
      } catch (const Error& e) {
        throw Error(e.code(), fmt::format("{}: {}: {}", op, operand, e.what()), e.context());
      }
    }
    PyErr_Clear();  // what the library would not lend, it may export, or is refused below
  }
  holders.push_back(to_array(object, fmt::format("{}: {}", op, operand), access));
  return holders.back().view;
}

DType parse_dtype(const std::string& name) {
  if (std::optional<DType> t = dtype_from_name(name)) return *t;
  std::string known;
  for (int i = 0; i < kNumDTypes; ++i)
    known += fmt::format("{}{}", i ? ", " : "", dtype_name(static_cast<DType>(i)));
  throw_invalid(fmt::format("dtype: expected one of {}, got {}", known, name));
}

std::vector<std::int64_t> shape_of(const TensorView& t) {
  return {t.shape.begin(), t.shape.begin() + std::max(t.rank, 0)};
}

void bind_arrays(nb::module_& m) {
  nb::class_<TypedArray>(
      m, "TypedArray",
      "Contiguous memory under an element type that its owner's library lacks (bf16, fp8, GGUF's block\n"
      "formats). Without data it is a layout, for explain().")
      .def(
          "__init__",
          [](TypedArray* self, nb::object data, const std::string& dtype,
             const std::vector<std::int64_t>& shape) {
            new (self) TypedArray(make_typed(std::move(data), dtype, shape));
          },
          nb::arg("data").none(), nb::arg("dtype"), nb::arg("shape"))
      .def_prop_ro("dtype", [](const TypedArray& t) { return dtype_name(t.array.view.dtype); })
      .def_prop_ro("shape", [](const TypedArray& t) { return nb::tuple(nb::cast(shape_of(t.array.view))); })
      .def_prop_ro("strides",
                   [](const TypedArray& t) {
                     const TensorView& v = t.array.view;
                     return nb::tuple(
                         nb::cast(std::vector<std::int64_t>(v.strides.begin(), v.strides.begin() + v.rank)));
                   })
      .def_prop_ro("device", [](const TypedArray& t) { return to_string(t.array.view.device); })
      .def(
          "numpy",
          [](nb::handle self) { return numpy_view(nb::cast<const TypedArray&>(self).array.view, self); },
          "The memory as NumPy has it; bf16 and fp8 as unsigned integers, int4 as bytes of two. Of an array "
          "lent to a\n"
          "custom kernel it lives as long as the call.")
      .def(
          "torch",
          [](nb::handle self) {
            const auto& typed = nb::cast<const TypedArray&>(self);
            return library_view<nb::pytorch>("torch", typed.array.view, owner_of(self));
          },
          "The memory as a torch tensor, on its device, int4 as bytes of two; as `numpy` for how long.")
      .def(
          "dlpack",
          [](nb::handle self) {
            const auto& typed = nb::cast<const TypedArray&>(self);
            return library_view<>("dlpack", typed.array.view, owner_of(self));
          },
          "The memory as an object that another library's `from_dlpack` takes; as `numpy` for how long.")
      .def_prop_ro("nbytes", [](const TypedArray& t) { return t.array.view.nbytes(); })
      .def("__repr__", [](const TypedArray& t) { return "TypedArray(" + to_string(t.array.view) + ")"; });
  m.def(
      "dtypes",
      [] {
        nb::dict all;
        for (int i = 0; i < kNumDTypes; ++i) {
          const DTypeInfo& info = dtype_info(static_cast<DType>(i));
          nb::dict d;
          d["block_elems"] = info.block_elems;
          d["block_bytes"] = info.block_bytes;
          d["is_float"] = info.is_float;
          d["is_block"] = info.is_block;
          all[info.name] = d;
        }
        return all;
      },
      "Every element type by name.");
}

}  // namespace kf::python
