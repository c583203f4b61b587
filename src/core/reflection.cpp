// What is derived from a Params struct's own description: slots, printed form, plan key.

#include <algorithm>
#include <iterator>

#include <fmt/format.h>

#include "kf/op.h"

namespace kf {
namespace {

class SlotCollector final : public FieldVisitor {
 public:
  std::vector<Slot> slots;
  void tensor(const char* name, TensorView& t, Role role, bool optional) override {
    slots.push_back({name, &t, role, optional});
  }
  void is_weight(const char*) override { slots.back().is_weight = true; }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char*, int&, std::span<const char* const>) override {}
};

class AliasCollector final : public FieldVisitor {
 public:
  std::vector<Alias> aliases;
  void tensor(const char*, TensorView&, Role, bool) override {}
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char*, int&, std::span<const char* const>) override {}
  void may_alias(const char* output, const char* input) override { aliases.push_back({output, input}); }
};

class Describer final : public FieldVisitor {
 public:
  std::string text;
  void tensor(const char* name, TensorView& t, Role, bool) override {
    if (t.present()) add(name, to_string(t));
  }
  void attr(const char* name, bool& value) override { add(name, value ? "true" : "false"); }
  void attr(const char* name, std::int64_t& value) override { add(name, std::to_string(value)); }
  void run_attr(const char*, std::int64_t&) override {}
  void attr(const char* name, float& value) override { add(name, fmt::format("{:g}", value)); }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    const bool known = value >= 0 && static_cast<std::size_t>(value) < names.size();
    add(name, known ? names[static_cast<std::size_t>(value)] : std::to_string(value));
  }

 private:
  void add(const char* name, const std::string& value) {
    fmt::format_to(std::back_inserter(text), "{}{}={}", text.empty() ? "" : " ", name, value);
  }
};

class KeyBuilder final : public FieldVisitor {
 public:
  explicit KeyBuilder(std::string& key) : key_(key) {}
  void tensor(const char*, TensorView& t, Role, bool) override {
    put(t.rank);
    if (!t.present()) return;
    put(t.dtype);
    put(t.device.type);
    put(t.device.index);
    for (int i = 0; i < std::min(t.rank, kMaxRank); ++i) {  // a greater rank is refused when planned
      put(t.shape[i]);
      put(t.strides[i]);
    }
  }
  void attr(const char*, bool& value) override { put(value); }
  void attr(const char*, std::int64_t& value) override { put(value); }
  void run_attr(const char*, std::int64_t&) override {}
  void attr(const char*, float& value) override { put(value); }
  void attr(const char*, int& value, std::span<const char* const>) override { put(value); }

 private:
  template <class T>
  void put(const T& value) {
    key_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string& key_;
};

// visit() takes the struct by reference to serve writers too; readers leave it as it is.
void visit_const(Op op, const void* params, FieldVisitor& v) {
  op_info(op).visit(const_cast<void*>(params), v);
}

}  // namespace

std::vector<Slot> slots_of(Op op, void* params) {
  SlotCollector c;
  op_info(op).visit(params, c);
  return std::move(c.slots);
}

std::vector<Alias> aliases_of(Op op) {
  AliasCollector c;
  op_info(op).visit(op_info(op).clone(nullptr).get(), c);
  return std::move(c.aliases);
}

std::string describe(Op op, const void* params) {
  Describer d;
  visit_const(op, params, d);
  return std::move(d.text);
}

void append_plan_key(Op op, const void* params, std::string& key) {
  key.push_back(static_cast<char>(op));
  KeyBuilder k(key);
  visit_const(op, params, k);
}

}  // namespace kf
