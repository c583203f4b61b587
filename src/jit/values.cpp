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

std::span<const NamedSize> named_sizes() {
  static constexpr NamedSize sizes[] = {
      {"N", {"x", "q"}, true, 0},
      {"D", {"x", "q"}, false, -1},
      {"D_in", {"x", "q"}, false, -1},
      {"D_out", {"out", "out"}, false, -1},
      {"H", {"gate_weight", "gate_weight"}, false, 0},
  };
  return sizes;
}

ValueSource value_source(Op op, std::string_view name, const std::vector<std::string>& transposed) {
  const AnyParams defaults(op);
  const Fields fields(defaults);
  const auto tensor = [&](std::string_view operand) {
    const Field* f = fields.find(operand);
    return f != nullptr && f->is_tensor() ? f : nullptr;
  };
  for (const NamedSize& n : named_sizes()) {
    if (name != n.name) continue;
    const Field* f = tensor(n.operands[0]) != nullptr ? tensor(n.operands[0]) : tensor(n.operands[1]);
    if (f == nullptr) no_such(op, name);
    return {n.rows ? Kind::rows : Kind::shape, fields.index_of(*f), n.dim, false};
  }
  const auto size = [&](Kind kind, const Field* field, int dim = 0) {
    if (field == nullptr) no_such(op, name);
    const bool turned = std::ranges::find(transposed, field->name) != transposed.end();
    return ValueSource{kind, fields.index_of(*field), dim, turned};
  };
  if (const std::size_t dot = name.find('.'); dot != std::string_view::npos) {
    const Field* field = tensor(name.substr(0, dot));
    const std::string_view what = name.substr(dot + 1);
    if (what == "numel") return size(Kind::numel, field);
    if (const auto i = index_in(what, "shape[")) return size(Kind::shape, field, *i);
    if (const auto i = index_in(what, "stride[")) return size(Kind::stride, field, *i);
    no_such(op, name);
  }
  const Field* f = fields.find(name);
  if (f == nullptr) no_such(op, name);
  return {f->is_tensor() ? Kind::pointer : Kind::attribute, fields.index_of(*f), 0, false};
}

Value value_of(const Fields& fields, const ValueSource& s) {
  const Field& f = fields[s.field];
  const auto integer = [](std::int64_t n) { return Value{.kind = Value::Kind::integer, .integer = n}; };
  if (s.kind == Kind::attribute) {
    if (f.kind == Field::Kind::number)
      return {.kind = Value::Kind::real, .real = static_cast<double>(f.number)};
    return integer(f.integer);
  }
  const TensorView& t = *f.view;
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
  const jit::Value v = jit::value_of(Fields(op_, params_), jit::value_source(op_, name, transposed_));
  if (v.kind != jit::Value::Kind::integer)
    throw_invalid(fmt::format("CUDA source: shape: expected the name of a size, got {}", name));
  return v.integer;
}

}  // namespace kf
