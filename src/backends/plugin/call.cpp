#include "backends/plugin/call.h"

#include <string_view>

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

const DLManagedTensor* tensor_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::tensor);
  return f && f->is_given() ? &call->tensors[call->fields.index_of(*f)] : nullptr;
}
const char* dtype_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::tensor);
  return f && f->is_given() ? dtype_name(f->view->dtype) : nullptr;
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
  return f ? static_cast<double>(f->number) : 0;
}
const char* choice_of(const kf_call* call, const char* name) {
  const Field* f = call->asked_for(name, Field::Kind::choice);
  return f ? f->choice() : "";
}

}  // namespace

const kf_host& host() {
  static const kf_host table{sizeof(kf_host), KF_VERSION, tensor_of, dtype_of,
                             boolean_of,      integer_of, number_of, choice_of};
  return table;
}

}  // namespace kf::plugin

kf_call::kf_call(kf::Op op, const void* params, const char* const* listed_fields)
    : fields(op, params), listed(listed_fields) {
  for (const kf::Field& f : fields) {
    if (!f.is_given()) continue;
    // DLPack takes shapes as if they could be written; plug-ins get them as const.
    auto& t = const_cast<kf::TensorView&>(*f.view);
    tensors[fields.index_of(f)] = {{t.data, kf::plugin::dl_device(t.device), t.rank,
                                    kf::plugin::dl_dtype(t.dtype), t.shape.data(), t.strides.data(), 0},
                                   nullptr,
                                   nullptr};
  }
}

const kf::Field* kf_call::asked_for(const char* name, kf::Field::Kind kind) const {
  const std::string_view wanted = name ? name : "a null pointer";
  for (const char* const* l = listed; l && *l; ++l) {
    if (wanted != *l) continue;
    const kf::Field* f = fields.find(wanted);
    if (f && f->kind == kind) return f;
  }
  if (bad_name[0] == 0) wanted.copy(bad_name.data(), bad_name.size() - 1);
  return nullptr;
}

int kf_call::device() const {
  for (const kf::Field& f : fields)
    if (f.is_given()) return f.view->device.index;
  return 0;
}
