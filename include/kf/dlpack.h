// DLPack in and out (https://dmlc.github.io/dlpack): tensors of other libraries without a copy. Needs dlpack/dlpack.h.
#pragma once

#include <dlpack/dlpack.h>

#include <optional>

#include "kf/tensor.h"

namespace kf {

// A view of the same memory, alive as long as its owner keeps it. Throws invalid_argument for a dtype, device or
// rank that the library does not have.
TensorView from_dlpack(const DLTensor& tensor);

// What a device type of DLPack means in this process. It has one, kDLExtDev, for all accelerators that it has no name for, and
// PyTorch gives it to its plug-in (npu, mlu); others show their tensors under the name of another device (kDLCUDA). Tensors
// of this type are `type`'s from now on, and `type`'s are exported as such; until it is said, those without a meaning of
// their own are refused.
void set_dlpack_device(DLDeviceType code, DeviceType type);
std::optional<DeviceType> named_device(int code);  // what was set

// The device as DLPack names it. Throws invalid_argument for one that it has no name for.
DLDevice dlpack_device(Device device);

// DLPack's name of a dtype. Throws invalid_argument for those that it has none for (block formats, int4).
DLDataType dlpack_dtype(DType dtype);

// Shares ownership of `tensor`'s memory with the consumer, who calls the deleter. Block formats have no DLPack dtype
// and are refused.
DLManagedTensor* to_dlpack(const Tensor& tensor);

}  // namespace kf
