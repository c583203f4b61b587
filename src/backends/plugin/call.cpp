#include "backends/plugin/call.h"

#include <algorithm>
#include <cstring>

#include "kf/dlpack.h"

namespace kf::plugin {
namespace {

DLDataType dl_dtype(DType dtype) {
  if (dtype == DType::int4) return {kDLInt, 4, 1};
  if (dtype_info(dtype).is_block) return {kDLOpaqueHandle, 8, 1};
  return dlpack_dtype(dtype);
}

DLDevice dl_device(Device device) {
  constexpr auto kExtension = static_cast<DLDeviceType>(12);  // kDLExtDev
  switch (device.type) {
    case DeviceType::cpu:
      return {kDLCPU, device.index};
    case DeviceType::cuda:
      return {kDLCUDA, device.index};
    case DeviceType::rocm:
      return {kDLROCM, device.index};
    case DeviceType::ascend:
    case DeviceType::mlu:
    case DeviceType::kunlun:
      break;
  }
  return {kExtension, device.index};
}

class FieldFiller final : public FieldVisitor {
 public:
  explicit FieldFiller(kf_call& call) : call_(call) {}
  void tensor(const char* name, TensorView& t, Role, bool optional) override {
    Field& f = add(name, Field::Kind::tensor);
    f.required = !optional;
    f.dtype = t.dtype;
    f.tensor.dl_tensor.ndim = -1;
    if (t.present())
      f.tensor.dl_tensor = {t.data,         dl_device(t.device), t.rank, dl_dtype(t.dtype),
                            t.shape.data(), t.strides.data(),    0};
  }
  void attr(const char* name, bool& value) override { add(name, Field::Kind::boolean).integer = value; }
  void attr(const char* name, std::int64_t& value) override {
    add(name, Field::Kind::integer).integer = value;
  }
  void run_attr(const char* name, std::int64_t& value) override {
    attr(name, value);
    call_.all[static_cast<std::size_t>(call_.count - 1)].changes = true;
  }
  void attr(const char* name, float& value) override {
    add(name, Field::Kind::number).number = static_cast<double>(value);
  }
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    add(name, Field::Kind::choice).choice = names[static_cast<std::size_t>(value)];
  }

 private:
  Field& add(const char* name, Field::Kind kind) {
    Field& f = call_.all.at(static_cast<std::size_t>(call_.count++));
    f.name = name;
    f.kind = kind;
    return f;
  }
  kf_call& call_;
};

const DLManagedTensor* tensor_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::tensor);
  return f && f->tensor.dl_tensor.ndim >= 0 ? &f->tensor : nullptr;
}
const char* dtype_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::tensor);
  return f && f->tensor.dl_tensor.ndim >= 0 ? dtype_name(f->dtype) : nullptr;
}
int boolean_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::boolean);
  return f ? static_cast<int>(f->integer) : 0;
}
std::int64_t integer_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::integer);
  return f ? f->integer : 0;
}
double number_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::number);
  return f ? f->number : 0;
}
const char* choice_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::choice);
  return f ? f->choice : "";
}

}  // namespace

bool Field::is_set_otherwise_than(const Field& o) const {
  switch (kind) {
    case Kind::tensor:
      return (tensor.dl_tensor.ndim >= 0) != (o.tensor.dl_tensor.ndim >= 0);
    case Kind::boolean:
    case Kind::integer:
      return integer != o.integer;
    case Kind::number:
      return !(number == o.number);  // a NaN is not what it was
    case Kind::choice:
      return std::strcmp(choice, o.choice) != 0;
  }
  return true;
}

const kf_host& host() {
  static const kf_host table{KF_ABI_VERSION, KF_VERSION, tensor_of, dtype_of,
                             boolean_of,     integer_of, number_of, choice_of};
  return table;
}

}  // namespace kf::plugin

kf_call::kf_call(kf::Op op, const void* params, const char* const* listed_fields) : listed(listed_fields) {
  // visit() takes the struct by reference to serve writers too; this one reads.
  kf::plugin::FieldFiller filler(*this);
  kf::op_info(op).visit(const_cast<void*>(params), filler);
}

const kf::plugin::Field* kf_call::find(std::string_view name) const {
  const auto all_fields = fields();
  const auto it =
      std::ranges::find_if(all_fields, [&](const kf::plugin::Field& f) { return f.name == name; });
  return it == all_fields.end() ? nullptr : &*it;
}

const kf::plugin::Field* kf_call::asked_for(const char* name, kf::plugin::Field::Kind kind) const {
  const std::string_view wanted = name ? name : "a null pointer";
  for (const char* const* l = listed; l && *l; ++l) {
    if (wanted != *l) continue;
    const kf::plugin::Field* f = find(wanted);
    if (f && f->kind == kind) return f;
  }
  if (bad_name[0] == 0) wanted.copy(bad_name.data(), bad_name.size() - 1);
  return nullptr;
}

int kf_call::device() const {
  for (const kf::plugin::Field& f : fields())
    if (f.kind == kf::plugin::Field::Kind::tensor && f.tensor.dl_tensor.ndim >= 0)
      return f.tensor.dl_tensor.device.device_id;
  return 0;
}
