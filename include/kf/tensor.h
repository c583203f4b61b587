// Tensors: a non-owning strided view, and an owner. Shapes and strides count elements, as DLPack does. In a block
// format the last dimension is contiguous and every other stride is a multiple of the block, so that an element
// offset divides into blocks.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kf/dtype.h"

namespace kf {

inline constexpr int kMaxRank = 6;
using Dims = std::array<std::int64_t, kMaxRank>;

enum class DeviceType : std::uint8_t { cpu, cuda, rocm, ascend, mlu, kunlun };
const char* device_type_name(DeviceType type);

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};
std::string to_string(Device device);  // "cpu:0"

// A view of memory that somebody else owns. Default-constructed, it is absent: an optional operand not given.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device;
  int rank = -1;   // -1: absent
  Dims shape{};    // elements
  Dims strides{};  // elements

  bool present() const { return rank >= 0; }
  std::int64_t dim(int i) const { return shape[i < 0 ? i + rank : i]; }
  std::int64_t stride(int i) const { return strides[i < 0 ? i + rank : i]; }
  // At most 2^63 - 1: a view of more elements is refused before anything counts on them.
  std::int64_t numel() const {
    std::int64_t n = 1;
    bool overflow = false;
    for (int i = 0; i < rank; ++i) {
      if (shape[i] == 0) return 0;
      overflow |= __builtin_mul_overflow(n, shape[i], &n);
    }
    return overflow ? std::numeric_limits<std::int64_t>::max() : n;
  }
  // Bytes that the elements take (not the span of a strided view).
  std::size_t nbytes() const;
  bool is_contiguous() const;
  bool same_shape(const TensorView& o) const;
  // Same dtype, device, shape and strides: a plan made for one serves the other.
  bool same_layout(const TensorView& o) const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Address of the element at flat element offset `offset` (in whole blocks).
  void* at(std::int64_t offset) const;

  // A contiguous (row-major) view. Throws invalid_argument where its bytes are more than 2^63.
  static TensorView contiguous(void* data, DType dtype, std::span<const std::int64_t> shape, Device device = {});
  static TensorView contiguous(void* data, DType dtype, std::initializer_list<std::int64_t> shape,
                               Device device = {}) {
    return contiguous(data, dtype, std::span(shape.begin(), shape.size()), device);
  }
  // The same memory with another shape; needs a contiguous tensor with as many elements.
  TensorView reshape(std::initializer_list<std::int64_t> shape) const;
  // Elements [begin, end) along `axis`; of a block format, whole blocks.
  TensorView slice(int axis, std::int64_t begin, std::int64_t end) const;
  TensorView transpose(int a, int b) const;
};

std::string shape_string(const TensorView& t);  // "[2, 512, 9, 64]"
std::string to_string(const TensorView& t);     // "f32[2, 512, 9, 64]", with strides where not contiguous

// An owner of 64-byte aligned host memory. Movable and cheaply copyable (shared ownership).
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::span<const std::int64_t> shape);
  Tensor(DType dtype, std::initializer_list<std::int64_t> shape)
      : Tensor(dtype, std::span(shape.begin(), shape.size())) {}
  static Tensor zeros(DType dtype, std::initializer_list<std::int64_t> shape);

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  std::shared_ptr<void> storage_;
  TensorView view_;
};

// 64-byte aligned host memory; throws resource_exhausted.
std::shared_ptr<void> allocate_host(std::size_t bytes);

}  // namespace kf
