// One entry for every op, driven by the op's own description of its fields.
#include <fmt/format.h>

#include "bindings.h"
#include "bound_call.h"
#include "jit/values.h"
#include "kf/error.h"
#include "kf/families.h"
#include "op_fields.h"

namespace kf::python {
namespace {

// Runs an op; returns its output, a tuple of several, or None.
nb::object call(const std::string& op, const nb::dict& fields, const Selection& selection) {
  BoundCall bound(op_named(op), fields);
  bound.make_outputs();
  const Launch launch{.stream = bound.queue()};
  {
    nb::gil_scoped_release release;
    default_dispatcher(bound.op(), bound.params()).run(bound.op(), bound.params(), selection, launch);
  }
  return bound.results();
}

nb::list explain(const std::string& op, const nb::dict& fields, const Selection& selection) {
  const BoundCall bound(op_named(op), fields);
  return explained_rows(
      default_dispatcher(bound.op(), bound.params()).explain(bound.op(), bound.params(), selection));
}

// A quantized operand's companions as views; `holders` keep their memory.
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

// Memory that is given as bytes, since not every library has the dtype.
TensorView bytes_as(const char* name, const TensorView& bytes, DType dtype,
                    const std::vector<std::int64_t>& shape) {
  const TensorView t = TensorView::contiguous(bytes.data, dtype, shape);
  if (!bytes.is_contiguous() || t.nbytes() != bytes.nbytes())
    throw_invalid(
        fmt::format("{}: expected {} contiguous bytes, got {}", name, t.nbytes(), to_string(bytes)));
  return t;
}

// `data` is bytes, since not every library has the dtype.
void quantize_array(const nb::object& values, const nb::object& data, const std::string& dtype,
                    const nb::object& scales, const nb::object& zeros, std::int64_t group_size) {
  std::vector<Array> holders;
  const Quantization q = companions(scales, zeros, group_size, Access::write, holders);
  const Array from = to_array(values, "x"), bytes = to_array(data, "data", Access::write);
  const TensorView to = bytes_as("data", bytes.view, parse_dtype(dtype), shape_of(from.view));
  nb::gil_scoped_release release;
  to.rank == 2 ? quantize(from.view, to, q) : quantize_kv(from.view, to, q);
}

void dequantize_array(const nb::object& data, const nb::object& scales, const nb::object& zeros,
                      std::int64_t group_size, const nb::object& values) {
  std::vector<Array> holders;
  const Quantization q = companions(scales, zeros, group_size, Access::read, holders);
  const Array from = to_array(data, "data"), to = to_array(values, "values", Access::write);
  nb::gil_scoped_release release;
  from.view.rank == 2 ? dequantize(from.view, q, to.view) : dequantize_kv(from.view, q, to.view);
}

// A sparse weight's companions as views.
Sparsity sparsity_of(const nb::object& mask, const nb::object& offsets, std::int64_t n, std::int64_t m,
                     Access access, std::vector<Array>& holders) {
  Sparsity s;
  holders.push_back(to_array(mask, "mask"));
  s.mask = holders.back().view;
  if (!offsets.is_none()) {
    holders.push_back(to_array(offsets, "offsets", access));
    s.offsets = holders.back().view;
  }
  s.n = n;
  s.m = m;
  return s;
}

// How many values are kept, and their dtype.
nb::tuple choose_array(const nb::object& dense, std::int64_t n, std::int64_t m, double sparsity,
                       const nb::object& mask) {
  const Array from = to_array(dense, "x"), to = to_array(mask, "mask", Access::write);
  const std::int64_t kept = unlocked([&] {
    return m == 0 && n == 0 ? choose_largest(from.view, sparsity, to.view)
                            : choose_n_of_m(from.view, n, m, to.view);
  });
  return nb::make_tuple(kept, dtype_name(from.view.dtype));
}

// `values` is bytes, since not every library has the dtype.
void pack_array(const nb::object& dense, const nb::object& values, const std::vector<std::int64_t>& shape,
                const nb::object& mask, const nb::object& offsets, std::int64_t n, std::int64_t m) {
  std::vector<Array> holders;
  const Sparsity s = sparsity_of(mask, offsets, n, m, Access::write, holders);
  const Array from = to_array(dense, "x"), bytes = to_array(values, "values", Access::write);
  const TensorView to = bytes_as("values", bytes.view, from.view.dtype, shape);
  nb::gil_scoped_release release;
  pack_values(from.view, to, s);
}

void densify_array(const nb::object& values, const nb::object& scales, const nb::object& zeros,
                   std::int64_t group_size, const nb::object& mask, const nb::object& offsets, std::int64_t n,
                   std::int64_t m, const nb::object& dense) {
  std::vector<Array> holders;
  const Quantization q =
      scales.is_none() ? Quantization{} : companions(scales, zeros, group_size, Access::read, holders);
  const Sparsity s = sparsity_of(mask, offsets, n, m, Access::read, holders);
  const Array from = to_array(values, "values"), to = to_array(dense, "dense", Access::write);
  nb::gil_scoped_release release;
  densify(from.view, q, s, to.view);
}

void check_sparse_array(const nb::object& values, const nb::object& mask, const nb::object& offsets,
                        std::int64_t n, std::int64_t m, std::int64_t in) {
  std::vector<Array> holders;
  const Sparsity s = sparsity_of(mask, offsets, n, m, Access::read, holders);
  const Array from = to_array(values, "values");
  nb::gil_scoped_release release;
  check_sparse(from.view, s, in);
}

// An op's fields in order, with defaults: what the Python functions and `kf explain` are checked against.
nb::list listed_fields(Op op) {
  constexpr const char* kKinds[] = {"tensor", "bool", "int", "float", "choice"};  // by Field::Kind
  const AnyParams defaults(op);
  return listed(Fields(defaults), [&](const Field& f) {
    nb::dict d;
    d["name"] = f.name;
    d["kind"] = kKinds[static_cast<std::size_t>(f.kind)];
    if (f.is_tensor()) {
      d["role"] = f.role == Role::in ? "in" : f.role == Role::out ? "out" : "inout";
      d["optional"] = !f.required;
      d["integers"] = f.integers;
    } else {
      d["default"] = attribute(f);
    }
    if (f.kind == Field::Kind::choice)
      d["choices"] = nb::cast(std::vector<std::string>(f.choices.begin(), f.choices.end()));
    return d;
  });
}

}  // namespace

nb::list explained_rows(const std::vector<Explained>& rows) {
  return listed(rows, [&](const Explained& e) {
    nb::dict d;
    d["kernel"] = e.kernel;
    d["families"] = e.families;
    d["selected"] = e.selected;
    d["supported"] = e.supported;
    d["allowed"] = e.allowed;
    d["reason"] = e.reason;
    return d;
  });
}

Selection make_selection(const std::vector<std::string>& families, const std::string& kernel,
                         bool allow_fallback, bool batch_invariant, bool tf32) {
  Selection s;
  s.kernel = kernel;
  s.allow_fallback = allow_fallback;
  s.batch_invariant = batch_invariant;
  s.tf32 = tf32;
  s.families = 0;
  for (const std::string& name : families) {
    unsigned bit = 1;
    while (bit <= kLastFamily && family_names(bit) != name) bit <<= 1;
    if (bit > kLastFamily)
      throw_invalid(
          "families: expected reference, vanilla, fused, library, custom, triton, flash3 or xformers, got " +
          name);
    s.families |= bit;
  }
  return s;
}

void bind_ops(nb::module_& m) {
  nb::class_<Selection>(m, "Selection", "Which kernels a call may use.")
      .def(
          "__init__",
          [](Selection* self, const std::vector<std::string>& families, const std::string& kernel,
             bool allow_fallback, bool batch_invariant, bool tf32) {
            new (self) Selection(make_selection(families, kernel, allow_fallback, batch_invariant, tf32));
          },
          nb::arg("families") = std::vector<std::string>{"custom", "fused", "library"},
          nb::arg("kernel") = "", nb::arg("allow_fallback") = false, nb::arg("batch_invariant") = false,
          nb::arg("tf32") = false)
      .def_ro("kernel", &Selection::kernel)
      .def_ro("allow_fallback", &Selection::allow_fallback)
      .def_ro("batch_invariant", &Selection::batch_invariant)
      .def_ro("tf32", &Selection::tf32)
      .def_prop_ro("families", [](const Selection& s) { return family_names(s.families); });
  m.def(
      "ops",
      [] {
        nb::dict all;
        for (const OpInfo& info : all_ops()) {
          nb::dict d;
          d["summary"] = info.summary;
          d["fields"] = listed_fields(info.op);
          all[info.name] = d;
        }
        return all;
      },
      "Every op by name: its summary and its fields in order.");
  m.def(
      "named_sizes",
      [] {
        nb::list all;
        for (const jit::NamedSize& n : jit::named_sizes())
          all.append(nb::make_tuple(n.name, std::vector<std::string>(n.operands.begin(), n.operands.end()),
                                    n.rows, n.dim));
        return all;
      },
      "Sizes of a call that have names of their own: (name, operands that may have it, whether it counts "
      "rows, dimension).");
  m.def("call", &call, nb::arg("op"), nb::arg("fields"), nb::arg("selection") = Selection{},
        "Runs an op; returns its output, a tuple of several, or None.");
  m.def("explain", &explain, nb::arg("op"), nb::arg("fields"), nb::arg("selection") = Selection{},
        "Every kernel of the op in order: taken, or why not.");
  m.def("quantize", &quantize_array, nb::arg("values"), nb::arg("data"), nb::arg("dtype"), nb::arg("scales"),
        nb::arg("zeros").none(), nb::arg("group_size"),
        "Rounds a matrix, or keys or values, to data and fills scales and zeros.");
  m.def("dequantize", &dequantize_array, nb::arg("data"), nb::arg("scales"), nb::arg("zeros").none(),
        nb::arg("group_size"), nb::arg("values"), "values = (data - zeros) * scales");
  m.def(
      "choose", &choose_array, nb::arg("x"), nb::arg("n"), nb::arg("m"), nb::arg("sparsity"), nb::arg("mask"),
      "Fills the mask of what a sparse weight keeps: n of every m, or the largest; (how many, their dtype).");
  m.def("pack_values", &pack_array, nb::arg("x"), nb::arg("values"), nb::arg("shape"), nb::arg("mask"),
        nb::arg("offsets").none(), nb::arg("n"), nb::arg("m"),
        "Gathers what the mask keeps, and fills the offsets of an unstructured weight.");
  m.def("densify", &densify_array, nb::arg("values"), nb::arg("scales").none(), nb::arg("zeros").none(),
        nb::arg("group_size"), nb::arg("mask"), nb::arg("offsets").none(), nb::arg("n"), nb::arg("m"),
        nb::arg("dense"), "The values where the mask has them, 0 elsewhere.");
  m.def("check_sparse", &check_sparse_array, nb::arg("values"), nb::arg("mask"), nb::arg("offsets").none(),
        nb::arg("n"), nb::arg("m"), nb::arg("columns"), "Raises unless the mask fits values and pattern.");
}

}  // namespace kf::python
