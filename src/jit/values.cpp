#include "jit/values.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "kf/cuda_source.h"
#include "kf/error.h"

namespace kf::jit {
namespace {

using Kind = ValueSource::Kind;

[[noreturn]] void no_such(Op op, std::string_view name) {
  throw_invalid(fmt::format(
      "CUDA source: args: expected a field of {} (x), a size (x.shape[0], x.stride[0], x.numel, N, "
      "D, D_in, D_out, H), got {}",
      op_name(op), name));
}

// The inner part of "shape[1]".
std::optional<int> index_in(std::string_view text, std::string_view before) {
  if (!text.starts_with(before) || !text.ends_with(']')) return std::nullopt;
  text.remove_prefix(before.size());
  text.remove_suffix(1);
  int index = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (error != std::errc() || end != text.data() + text.size() || index < -kMaxRank || index >= kMaxRank)
    return std::nullopt;
  return index;
}

}  // namespace

ValueSource value_source(Op op, std::string_view name, const std::vector<std::string>& transposed) {
  const AnyParams defaults(op);
  const Fields fields(op, defaults.data());
  const auto tensor = [&](std::string_view operand) {
    const int i = fields.find(operand);
    return i >= 0 && fields[i].tensor != nullptr ? i : -1;
  };
  const auto first = [&] { return tensor("x") >= 0 ? tensor("x") : tensor("q"); };
  const auto size = [&](Kind kind, int field, int dim = 0) {
    if (field < 0) no_such(op, name);
    const bool turned = std::ranges::find(transposed, fields[field].name) != transposed.end();
    return ValueSource{kind, field, dim, turned};
  };
  if (name == "N") return size(Kind::rows, first());
  if (name == "D" || name == "D_in") return size(Kind::shape, first(), -1);
  if (name == "D_out") return size(Kind::shape, tensor("out"), -1);
  if (name == "H") {
    ValueSource h = size(Kind::shape, tensor("gate_weight"), 0);
    h.transposed = false;
    return h;
  }
  if (const std::size_t dot = name.find('.'); dot != std::string_view::npos) {
    const int field = tensor(name.substr(0, dot));
    const std::string_view what = name.substr(dot + 1);
    if (what == "numel") return size(Kind::numel, field);
    if (const auto i = index_in(what, "shape[")) return size(Kind::shape, field, *i);
    if (const auto i = index_in(what, "stride[")) return size(Kind::stride, field, *i);
    no_such(op, name);
  }
  const int i = fields.find(name);
  if (i < 0) no_such(op, name);
  return {fields[i].tensor != nullptr ? Kind::pointer : Kind::attribute, i, 0, false};
}

Fields::Fields(Op op, const void* params) {
  op_info(op).visit(const_cast<void*>(params), *this);  // only read
}

Fields::Field& Fields::add(const char* name) {
  if (static_cast<std::size_t>(count_) == kMax)
    throw_invalid("CUDA source: an op of more fields than are counted on");
  Field& f = fields_[static_cast<std::size_t>(count_++)];
  f = Field{.name = name};
  return f;
}

int Fields::find(std::string_view name) const {
  for (int i = 0; i < count_; ++i)
    if (name == (*this)[i].name) return i;
  return -1;
}

void Fields::tensor(const char* name, TensorView& t, Role role, bool) {
  Field& f = add(name);
  f.tensor = &t;
  f.role = role;
}
void Fields::attr(const char* name, bool& value) { add(name).flag = &value; }
void Fields::attr(const char* name, std::int64_t& value) { add(name).integer = &value; }
void Fields::attr(const char* name, float& value) { add(name).real = &value; }
void Fields::attr(const char* name, int& value, std::span<const char* const>) {
  Field& f = add(name);  // the reference is to a copy that lives no longer than this
  f.choice = value;
  f.of_choice = true;
}

Value Fields::value(const ValueSource& s) const {
  const Field& f = (*this)[s.field];
  const auto integer = [](std::int64_t n) { return Value{.kind = Value::Kind::integer, .integer = n}; };
  if (s.kind == Kind::attribute) {
    if (f.real != nullptr) return {.kind = Value::Kind::real, .real = *f.real};
    return integer(f.flag != nullptr ? *f.flag : f.integer != nullptr ? *f.integer : f.choice);
  }
  const TensorView& t = *f.tensor;
  if (s.kind == Kind::pointer)
    return {.kind = Value::Kind::pointer, .pointer = t.present() ? t.data : nullptr};
  if (!t.present()) return integer(0);
  if (s.kind == Kind::numel) return integer(t.numel());
  if (s.kind == Kind::rows) return integer(t.rank == 0 || t.dim(-1) == 0 ? 0 : t.numel() / t.dim(-1));
  int dim = s.dim < 0 ? s.dim + t.rank : s.dim;
  if (dim < 0 || dim >= t.rank)
    throw_invalid(
        fmt::format("CUDA source: args: {}: expected a dimension below {}, got {}", f.name, t.rank, s.dim));
  if (s.transposed) dim = t.rank - 1 - dim;
  return integer(s.kind == Kind::shape ? t.dim(dim) : t.stride(dim));
}

}  // namespace kf::jit

namespace kf {

std::int64_t CallSizes::size(std::string_view name) const {
  const jit::Value v = jit::Fields(op_, params_).value(jit::value_source(op_, name, transposed_));
  if (v.kind != jit::Value::Kind::integer)
    throw_invalid(fmt::format("CUDA source: shape: expected the name of a size, got {}", name));
  return v.integer;
}

}  // namespace kf
