// Cuts a workspace into parts. What is counted when a call is planned and what is handed out when it runs is one
// function of a kernel's, called with a null workspace first.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kf::cpu {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}

  // Whether parts are counted only: what take() then gives must not be touched.
  bool counting() const { return base_ == 0; }
  // `count` elements, aligned to 64 bytes.
  template <class T>
  T* take(std::size_t count) {
    T* const part = reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
    return part;
  }
  std::size_t bytes() const { return bytes_; }  // of all parts

 private:
  std::uintptr_t base_;
  std::size_t bytes_ = 0;
};

}  // namespace kf::cpu
