#include "kf/dlpack.h"

#include <atomic>

#include <fmt/format.h>

#include "core/operands.h"
#include "kf/error.h"

namespace kf {
namespace {

// Type codes that came after DLPack 0.6, by their values in DLPack 1.1.
constexpr int kBool = 6, kFloat8E4m3fn = 10, kFloat8E5m2 = 12;

struct Coded {
  DType dtype;
  int code, bits;
};
constexpr Coded kCodes[] = {
    {DType::f32, kDLFloat, 32},        {DType::f16, kDLFloat, 16},
    {DType::bf16, kDLBfloat, 16},      {DType::fp8_e4m3, kFloat8E4m3fn, 8},
    {DType::fp8_e5m2, kFloat8E5m2, 8}, {DType::i8, kDLInt, 8},
    {DType::u8, kDLUInt, 8},           {DType::i32, kDLInt, 32},
    {DType::i64, kDLInt, 64},          {DType::boolean, kBool, 8},
};

struct CodedDevice {
  DeviceType type;
  DLDeviceType code;
};
constexpr CodedDevice kDevices[] = {
    {DeviceType::cpu, kDLCPU}, {DeviceType::cuda, kDLCUDA}, {DeviceType::rocm, kDLROCM}};

// By DLPack's device type what it was said to mean, plus one; 0: nothing was said. Those of later versions are refused.
constexpr int kCodeLimit = 32;
std::atomic<int> meanings[kCodeLimit];

// As the libraries that export them write it: float64, complex64.
std::string name_of(DLDataType type) {
  const char* kind = type.code == kDLInt       ? "int"
                     : type.code == kDLUInt    ? "uint"
                     : type.code == kDLFloat   ? "float"
                     : type.code == kDLComplex ? "complex"
                                               : nullptr;
  return kind != nullptr && type.lanes == 1
             ? fmt::format("{}{}", kind, type.bits)
             : fmt::format("DLPack code {}, {} bits, {} lanes", type.code, type.bits, type.lanes);
}

// What the consumer of an exported tensor holds.
struct Exported {
  Tensor tensor;
  DLManagedTensor managed{};
};

}  // namespace

TensorView from_dlpack(const DLTensor& d) {
  TensorView t;
  bool known = false;
  for (const Coded& c : kCodes)
    if (d.dtype.code == c.code && d.dtype.bits == c.bits && d.dtype.lanes == 1) {
      t.dtype = c.dtype;
      known = true;
    }
  if (!known)
    throw_invalid(fmt::format(
        "from_dlpack: expected a dtype of kf (f32, f16, bf16, fp8, i8, u8, i32, i64, boolean), got {}: "
        "convert it first",
        name_of(d.dtype)));
  known = false;
  for (const CodedDevice& c : kDevices)
    if (d.device.device_type == c.code) {
      t.device = {c.type, d.device.device_id};
      known = true;
    }
  if (const auto own = named_device(d.device.device_type)) {
    t.device = {*own, d.device.device_id};
    known = true;
  }
  if (!known)
    throw_invalid(fmt::format(
        "from_dlpack: expected a tensor on cpu, cuda, rocm or the device of a registered backend, "
        "got DLPack device type {}",
        static_cast<int>(d.device.device_type)));
  if (d.ndim < 0 || d.ndim > kMaxRank)
    throw_invalid(fmt::format("from_dlpack: expected at most {} dimensions, got {}", kMaxRank, d.ndim));
  if (d.ndim > 0 && d.shape == nullptr)
    throw_invalid(fmt::format("from_dlpack: expected a shape of {} dimensions, got a null pointer", d.ndim));
  for (int i = 0; i < d.ndim; ++i)
    if (d.shape[i] < 0)
      throw_invalid(fmt::format("from_dlpack: expected dimensions of 0 or more, got {} in dimension {}",
                                d.shape[i], i));
  const TensorView packed = TensorView::contiguous(
      nullptr, t.dtype, std::span(d.shape, static_cast<std::size_t>(d.ndim)), t.device);
  t.rank = d.ndim;
  t.shape = packed.shape;
  t.strides = packed.strides;
  if (d.strides != nullptr)
    for (int i = 0; i < d.ndim; ++i) t.strides[i] = d.strides[i];
  if (const std::string problem = layout_problem(t); !problem.empty())
    throw_invalid(fmt::format("from_dlpack: expected {}, got {}", problem, to_string(t)));
  t.data = d.data ? static_cast<char*>(d.data) + d.byte_offset : nullptr;
  return t;
}

void set_dlpack_device(DLDeviceType code, DeviceType type) {
  const int meaning = static_cast<int>(type) + 1;
  if (code < 0 || code >= kCodeLimit)
    throw_invalid(fmt::format("set_dlpack_device: expected a device type of DLPack from 0 to {}, got {}",
                              kCodeLimit - 1, static_cast<int>(code)));
  for (std::atomic<int>& other : meanings) {
    int same = meaning;
    other.compare_exchange_strong(same, 0);
  }
  meanings[code] = meaning;
}

std::optional<DeviceType> named_device(int code) {
  const int meaning = code >= 0 && code < kCodeLimit ? meanings[code].load() : 0;
  if (meaning == 0) return std::nullopt;
  return static_cast<DeviceType>(meaning - 1);
}

DLDevice dlpack_device(Device device) {
  for (int code = 0; code < kCodeLimit; ++code)
    if (named_device(code) == device.type) return {static_cast<DLDeviceType>(code), device.index};
  for (const CodedDevice& c : kDevices)
    if (c.type == device.type) return {c.code, device.index};
  throw_invalid(fmt::format("to_dlpack: expected a device that DLPack has, got {}", to_string(device)));
}

DLDataType dlpack_dtype(DType dtype) {
  for (const Coded& c : kCodes)
    if (c.dtype == dtype) return {static_cast<std::uint8_t>(c.code), static_cast<std::uint8_t>(c.bits), 1};
  throw_invalid(fmt::format("to_dlpack: expected a dtype that DLPack has, got {}", dtype_name(dtype)));
}

DLManagedTensor* to_dlpack(const Tensor& tensor) {
  const DLDataType dtype = dlpack_dtype(tensor.view().dtype);
  auto* e = new Exported{tensor, {}};
  // The shape and strides arrays are those of the exported copy, which lives until the deleter runs.
  TensorView& own = const_cast<TensorView&>(e->tensor.view());
  e->managed.dl_tensor = {own.data, {kDLCPU, 0}, own.rank, dtype, own.shape.data(), own.strides.data(), 0};
  e->managed.manager_ctx = e;
  e->managed.deleter = [](DLManagedTensor* m) { delete static_cast<Exported*>(m->manager_ctx); };
  return &e->managed;
}

}  // namespace kf
