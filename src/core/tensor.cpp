#include "kf/tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kf/error.h"

namespace kf {
namespace {

constexpr std::size_t kAlignment = 64;

}  // namespace

const char* device_type_name(DeviceType type) {
  switch (type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return "cuda";
    case DeviceType::rocm:
      return "rocm";
    case DeviceType::ascend:
      return "ascend";
    case DeviceType::mlu:
      return "mlu";
    case DeviceType::kunlun:
      return "kunlun";
  }
  return "unknown";
}

std::string to_string(Device device) {
  return fmt::format("{}:{}", device_type_name(device.type), device.index);
}

std::size_t TensorView::nbytes() const {
  const DTypeInfo& info = dtype_info(dtype);
  const auto n = static_cast<std::size_t>(numel()), elems = static_cast<std::size_t>(info.block_elems);
  std::size_t bytes = 0;
  const bool overflow =
      __builtin_mul_overflow((n + elems - 1) / elems, static_cast<std::size_t>(info.block_bytes), &bytes);
  return overflow ? std::numeric_limits<std::size_t>::max() : bytes;
}

bool TensorView::is_contiguous() const {
  std::int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] == 0) return true;
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

bool TensorView::same_shape(const TensorView& o) const {
  if (rank != o.rank) return false;
  for (int i = 0; i < rank; ++i)
    if (shape[i] != o.shape[i]) return false;
  return true;
}

bool TensorView::same_layout(const TensorView& o) const {
  if (!same_shape(o) || dtype != o.dtype || device != o.device) return false;
  for (int i = 0; i < rank; ++i)
    if (strides[i] != o.strides[i]) return false;
  return true;
}

void* TensorView::at(std::int64_t offset) const {
  if (data == nullptr) return nullptr;  // an empty tensor has rows, though nothing lies there
  const DTypeInfo& info = dtype_info(dtype);
  return static_cast<char*>(data) + offset / info.block_elems * info.block_bytes;
}

TensorView TensorView::contiguous(void* data, DType dtype, std::span<const std::int64_t> shape,
                                  Device device) {
  if (shape.size() > kMaxRank)
    throw_invalid(fmt::format("tensor: expected at most {} dimensions, got {}", kMaxRank, shape.size()));
  TensorView t;
  t.data = data;
  t.dtype = dtype;
  t.device = device;
  t.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1, bytes = 0;
  bool overflow = false;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.shape[i] = shape[static_cast<std::size_t>(i)];
    t.strides[i] = stride;
    // Symbolic (negative) dimensions have no strides yet.
    overflow |= __builtin_mul_overflow(stride, std::max<std::int64_t>(t.shape[i], 1), &stride);
  }
  overflow |= __builtin_mul_overflow(stride, std::int64_t{dtype_info(dtype).block_bytes}, &bytes);
  if (overflow)
    throw_invalid(fmt::format("tensor: expected less than 2^63 bytes, got {}[{}]", dtype_name(dtype),
                              fmt::join(shape, ", ")));
  return t;
}

TensorView TensorView::reshape(std::initializer_list<std::int64_t> shape) const {
  TensorView t = contiguous(data, dtype, shape, device);
  if (!is_contiguous() || t.numel() != numel())
    throw_invalid(fmt::format("reshape: {} cannot be viewed as {}", to_string(*this), shape_string(t)));
  return t;
}

TensorView TensorView::slice(int axis, std::int64_t begin, std::int64_t end) const {
  if (axis < 0) axis += rank;
  if (axis < 0 || axis >= rank || begin < 0 || end < begin || end > shape[axis])
    throw_invalid(fmt::format("slice: [{}, {}) of dimension {} of {}", begin, end, axis, to_string(*this)));
  // Of a block format, along the dimension whose elements lie in one block.
  const std::int64_t block = dtype_info(dtype).block_elems;
  if (strides[axis] % block != 0 && (begin * strides[axis] % block != 0 || end * strides[axis] % block != 0))
    throw_invalid(fmt::format("slice: expected whole blocks of {}, got [{}, {}) of dimension {} of {}", block,
                              begin, end, axis, to_string(*this)));
  TensorView t = *this;
  t.shape[axis] = end - begin;
  t.data = at(begin * strides[axis]);
  return t;
}

TensorView TensorView::transpose(int a, int b) const {
  TensorView t = *this;
  if (a < 0) a += rank;
  if (b < 0) b += rank;
  if (a < 0 || a >= rank || b < 0 || b >= rank)
    throw_invalid(fmt::format("transpose: expected dimensions of {}", to_string(*this)));
  std::swap(t.shape[a], t.shape[b]);
  std::swap(t.strides[a], t.strides[b]);
  return t;
}

std::string shape_string(const TensorView& t) {
  if (!t.present()) return "none";
  return fmt::format("[{}]", fmt::join(t.shape.begin(), t.shape.begin() + t.rank, ", "));
}

std::string to_string(const TensorView& t) {
  if (!t.present()) return "none";
  std::string s = fmt::format("{}{}", dtype_name(t.dtype), shape_string(t));
  if (t.device.type != DeviceType::cpu) s += fmt::format("@{}", to_string(t.device));
  if (!t.is_contiguous())
    s += fmt::format(" strides [{}]", fmt::join(t.strides.begin(), t.strides.begin() + t.rank, ", "));
  return s;
}

namespace {

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

// What spans pages of 2 MB is laid on them, and its end too where that adds little. Of pages of 4 KB a processor knows the
// places of few, and at the end of each its prefetching stops.
constexpr std::size_t kHugePage = std::size_t{2} << 20;
struct HostBlock {
  std::size_t alignment, bytes;

  explicit HostBlock(std::size_t wanted)
      : alignment(kAlignment), bytes(std::max(round_up(wanted, kAlignment), kAlignment)) {
    const std::size_t whole = round_up(wanted, kHugePage);
    if (whole - wanted <= wanted / 8) bytes = whole;
    if (bytes >= kHugePage) alignment = kHugePage;
  }
};

}  // namespace

std::shared_ptr<void> allocate_host(std::size_t bytes) {
  const auto refuse = [&] {
    throw Error(ErrorCode::resource_exhausted, fmt::format("cannot allocate {} bytes of host memory", bytes));
  };
  if (bytes > std::numeric_limits<std::size_t>::max() - kHugePage) refuse();
  const HostBlock block(bytes);
  void* p = nullptr;
  if (posix_memalign(&p, block.alignment, block.bytes) != 0) refuse();
#ifdef MADV_HUGEPAGE
  // A wish: systems that have no such pages, or none left, serve small ones.
  if (block.alignment == kHugePage) madvise(p, block.bytes, MADV_HUGEPAGE);
#endif
  return {p, std::free};
}

Tensor::Tensor(DType dtype, std::span<const std::int64_t> shape) {
  for (std::int64_t d : shape)
    if (d < 0)
      throw_invalid(fmt::format("tensor: expected dimensions >= 0, got [{}]", fmt::join(shape, ", ")));
  view_ = TensorView::contiguous(nullptr, dtype, shape);
  storage_ = allocate_host(view_.nbytes());
  view_.data = storage_.get();
}

Tensor Tensor::zeros(DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor t(dtype, shape);
  std::memset(t.view_.data, 0, t.view_.nbytes());
  return t;
}

}  // namespace kf
