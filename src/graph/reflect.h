// Slots and attributes of Params structs by name, for code that treats every op alike.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "kf/op.h"

namespace kf {

struct SlotInfo {
  std::string_view name;
  Role role{};
  bool optional = false;
  bool is_weight = false;   // kernels may keep a form of it where it is constant
  std::uint32_t field = 0;  // offset of the TensorView in the Params struct

  TensorView& in(void* params) const {
    return *reinterpret_cast<TensorView*>(static_cast<std::byte*>(params) + field);
  }
  const TensorView& in(const void* params) const {
    return *reinterpret_cast<const TensorView*>(static_cast<const std::byte*>(params) + field);
  }
  bool reads() const { return role != Role::out; }
  bool writes() const { return role != Role::in; }
};

// In the order of visit().
std::span<const SlotInfo> op_slots(Op op);
// Index into op_slots(), -1: no such slot.
int find_slot(Op op, std::string_view name);

// An enumeration is known by its name, so that attributes of different ops compare.
using AttrValue = std::variant<bool, std::int64_t, float, std::string_view>;

struct Attr {
  std::string_view name;
  AttrValue value;
};
std::vector<Attr> attrs_of(const AnyParams& params);
// As a default-constructed Params struct has them; same order as attrs_of().
std::span<const Attr> default_attrs(Op op);
std::optional<AttrValue> get_attr(const AnyParams& params, std::string_view name);
// Throws invalid_argument when there is no such attribute, or the value is of another type or not one of its
// names.
void set_attr(AnyParams& params, std::string_view name, const AttrValue& value);
// `text` as a rule writes it ("mul", "true", "0.5").
void set_attr_text(AnyParams& params, std::string_view name, std::string_view text);

// Attributes that stand for a dimension, and so may be symbolic.
bool is_dim_attr(std::string_view name);

}  // namespace kf
