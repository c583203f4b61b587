// Ops: what can be asked of the library. An op is a Params struct that names its operands and attributes through
// `visit()`. From that one description come plan keys, telemetry, graph nodes, rewriting, and the bindings.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kf/tensor.h"

namespace kf {

enum class Op : std::uint8_t {
  // primitive
  linear,
  binary,
  activation,
  rms_norm,
  layer_norm,
  softmax,
  rope,
  append_kv,
  attention_scores,
  attention_mask,
  attention_values,
  merge_attention,
  embedding,
  argmax,
  sample,
  dequantize,
  quantize,
  // what fusion makes of them (`linear`, `rms_norm`, `layer_norm` and `rope` also carry fused forms)
  gated_activation,
  rope_append,
  attention,
  qkv_linear,
  gated_ffn,
  lm_head_argmax,
};
inline constexpr int kNumOps = 23;

enum class Role : std::uint8_t { in, out, inout };

// Receives every operand and attribute of a Params struct, always in the same order. Prefixes of nested structs are
// part of the name ("norm_weight").
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  virtual void tensor(const char* name, TensorView& t, Role role, bool optional) = 0;
  virtual void attr(const char* name, bool& value) = 0;
  virtual void attr(const char* name, std::int64_t& value) = 0;
  virtual void attr(const char* name, float& value) = 0;
  // A value that no choice of a kernel depends on (the position in a random stream): not part of the plan.
  virtual void run_attr(const char* name, std::int64_t& value) { attr(name, value); }
  // An enumeration: `value` indexes `names`.
  virtual void attr(const char* name, int& value, std::span<const char* const> names) = 0;
  // What else is known of operands that were visited. The output may lie where the input does, element on element.
  virtual void may_alias([[maybe_unused]] const char* output, [[maybe_unused]] const char* input) {}
  // The operand is i32 or i64.
  virtual void integers([[maybe_unused]] const char* name) {}
  // The operand belongs to a model and not to a call: kernels may keep a form of it, made once, where it is constant.
  virtual void is_weight([[maybe_unused]] const char* name) {}

  void in(const char* name, TensorView& t) { tensor(name, t, Role::in, false); }
  void opt_in(const char* name, TensorView& t) { tensor(name, t, Role::in, true); }
  void weight(const char* name, TensorView& t) { in(name, t), is_weight(name); }
  void opt_weight(const char* name, TensorView& t) { opt_in(name, t), is_weight(name); }
  void table(const char* name, TensorView& t) { in(name, t), integers(name); }
  void opt_table(const char* name, TensorView& t) { opt_in(name, t), integers(name); }
  void out(const char* name, TensorView& t) { tensor(name, t, Role::out, false); }
  void opt_out(const char* name, TensorView& t) { tensor(name, t, Role::out, true); }
  void inout(const char* name, TensorView& t) { tensor(name, t, Role::inout, false); }
  template <class E>
  void choice(const char* name, E& value, std::span<const char* const> names) {
    int i = static_cast<int>(value);
    attr(name, i, names);
    value = static_cast<E>(i);
  }
};

struct Cost {
  double flops = 0;  // multiply and add count as two
  double bytes = 0;  // operands read and written once
};

// What the library knows of an op besides its kernels. One entry an op, in src/ops/op_table.cpp.
struct OpInfo {
  Op op;
  const char* name;
  const char* summary;                                 // the formula in a line
  std::shared_ptr<void> (*clone)(const void* params);  // nullptr: default-constructed
  void (*visit)(void* params, FieldVisitor& v);
  // Fills dtype, shape and contiguous strides of absent outputs (optional ones too) from the inputs; leaves them
  // absent where an input has not the rank that they are read from. Dimensions may be symbolic (negative); they
  // may only be copied and compared.
  void (*infer)(void* params);
  // Throws invalid_argument unless ranks, dtypes, shapes, strides and attributes fit together.
  void (*validate)(const void* params);
  // Throws invalid_argument unless the values in host tables and ids are in range. Reads the memory, so it is asked at
  // every call, not once a layout.
  void (*validate_data)(const void* params);
  Cost (*cost)(const void* params);
  // sizeof the Params struct, which is trivially copyable and at most kMaxParamsBytes: run() may copy it to its stack.
  std::size_t params_bytes;
};
inline constexpr std::size_t kMaxParamsBytes = 4096;

const OpInfo& op_info(Op op);
std::span<const OpInfo> all_ops();
const OpInfo* find_op(std::string_view name);  // nullptr: no such op
inline const char* op_name(Op op) { return op_info(op).name; }

// A Params struct of any op, by value.
class AnyParams {
 public:
  AnyParams() = default;
  template <class P>
  AnyParams(const P& params) : op_(P::kOp), data_(std::make_shared<P>(params)) {}
  explicit AnyParams(Op op) : op_(op), data_(op_info(op).clone(nullptr)) {}
  AnyParams(const AnyParams& o)
      : op_(o.op_), data_(o.data_ ? op_info(o.op_).clone(o.data_.get()) : nullptr) {}
  AnyParams& operator=(const AnyParams& o) { return *this = AnyParams(o); }
  AnyParams(AnyParams&&) = default;
  AnyParams& operator=(AnyParams&&) = default;

  Op op() const { return op_; }
  void* data() { return data_.get(); }
  const void* data() const { return data_.get(); }
  template <class P>
  P& as() {
    return *static_cast<P*>(data_.get());
  }
  template <class P>
  const P& as() const {
    return *static_cast<const P*>(data_.get());
  }
  void visit(FieldVisitor& v) { op_info(op_).visit(data_.get(), v); }

 private:
  Op op_{};
  std::shared_ptr<void> data_;
};

// One operand of a Params struct, found by reflection.
struct Slot {
  const char* name;
  TensorView* tensor;
  Role role;
  bool optional;
  bool is_weight = false;
};
std::vector<Slot> slots_of(Op op, void* params);
// Pairs of an output and the input whose memory it may be, by name.
struct Alias {
  const char* output;
  const char* input;
};
std::vector<Alias> aliases_of(Op op);
// "x=f32[512, 576] weight=q4_1[576, 576] activation=silu": what telemetry and explain print. Of the call's layout, so
// without what changes from run to run.
std::string describe(Op op, const void* params);
// Everything a plan depends on (layouts, attributes, presence), as bytes; not the addresses, nor run_attr()s.
void append_plan_key(Op op, const void* params, std::string& key);

}  // namespace kf
