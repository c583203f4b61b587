#include "graph/reflect.h"

#include <array>
#include <charconv>

#include <fmt/format.h>

#include "core/fields.h"
#include "kf/error.h"

namespace kf {
namespace {

struct OpDescription {
  std::vector<SlotInfo> slots;
  std::vector<Attr> defaults;
};

AttrValue value_of(const Field& f) {
  switch (f.kind) {
    case Field::Kind::boolean:
      return f.integer != 0;
    case Field::Kind::integer:
      return f.integer;
    case Field::Kind::number:
      return f.number;
    case Field::Kind::choice:
    case Field::Kind::tensor:
      break;
  }
  return std::string_view(f.choice());
}

class AttrWriter final : public FieldVisitor {
 public:
  AttrWriter(std::string_view name, const AttrValue& value) : name_(name), value_(value) {}
  bool written = false;

  void tensor(const char*, TensorView&, Role, bool) override {}
  void attr(const char* name, bool& value) override { assign(name, value); }
  void attr(const char* name, std::int64_t& value) override { assign(name, value); }
  void attr(const char* name, float& value) override { assign(name, value); }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    if (name != name_) return;
    const auto* wanted = std::get_if<std::string_view>(&value_);
    for (std::size_t i = 0; wanted != nullptr && i < names.size(); ++i) {
      if (*wanted != names[i]) continue;
      value = static_cast<int>(i);
      written = true;
    }
  }

 private:
  template <class T>
  void assign(const char* name, T& value) {
    if (name != name_) return;
    const T* wanted = std::get_if<T>(&value_);
    if (wanted == nullptr) return;
    value = *wanted;
    written = true;
  }
  std::string_view name_;
  const AttrValue& value_;
};

OpDescription describe_op(Op op) {
  OpDescription d;
  AnyParams params(op);
  const auto* begin = static_cast<const std::byte*>(params.data());
  for (const Slot& s : slots_of(op, params.data())) {
    const auto field = reinterpret_cast<const std::byte*>(s.tensor) - begin;
    d.slots.push_back({s.name, s.role, s.optional, s.is_weight, static_cast<std::uint32_t>(field)});
  }
  d.defaults = attrs_of(params);
  return d;
}

const OpDescription& description(Op op) {
  static const std::array<OpDescription, kNumOps> kDescriptions = [] {
    std::array<OpDescription, kNumOps> all;
    for (const OpInfo& info : all_ops()) all[static_cast<std::size_t>(info.op)] = describe_op(info.op);
    return all;
  }();
  return kDescriptions[static_cast<std::size_t>(op)];
}

// The text as a value of the type that `like` has.
std::optional<AttrValue> parse(std::string_view text, const AttrValue& like) {
  const auto number = [&](auto value) -> std::optional<AttrValue> {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  };
  if (std::holds_alternative<bool>(like)) return text == "true";
  if (std::holds_alternative<std::int64_t>(like)) return number(std::int64_t{});
  if (std::holds_alternative<float>(like)) return number(float{});
  return text;
}

}  // namespace

std::span<const SlotInfo> op_slots(Op op) { return description(op).slots; }

int find_slot(Op op, std::string_view name) {
  const auto slots = op_slots(op);
  for (std::size_t i = 0; i < slots.size(); ++i)
    if (slots[i].name == name) return static_cast<int>(i);
  return -1;
}

std::vector<Attr> attrs_of(const AnyParams& params) {
  std::vector<Attr> attrs;
  for (const Field& f : Fields(params))
    if (!f.is_tensor()) attrs.push_back({f.name, value_of(f)});
  return attrs;
}

std::span<const Attr> default_attrs(Op op) { return description(op).defaults; }

std::optional<AttrValue> get_attr(const AnyParams& params, std::string_view name) {
  for (const Attr& a : attrs_of(params))
    if (a.name == name) return a.value;
  return std::nullopt;
}

void set_attr(AnyParams& params, std::string_view name, const AttrValue& value) {
  AttrWriter writer(name, value);
  params.visit(writer);
  if (!writer.written)
    throw_invalid(fmt::format("{}: no attribute {} that takes this value", op_name(params.op()), name));
}

void set_attr_text(AnyParams& params, std::string_view name, std::string_view text) {
  for (const Attr& a : default_attrs(params.op())) {
    if (a.name != name) continue;
    if (const auto value = parse(text, a.value)) return set_attr(params, name, *value);
  }
  throw_invalid(fmt::format("{}: no attribute {} that takes '{}'", op_name(params.op()), name, text));
}

bool is_dim_attr(std::string_view name) { return name == "seqlen_k_max" || name == "seqlen_k"; }

}  // namespace kf
