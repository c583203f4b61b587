// Kernels that run on CUDA devices, as the profiling library CUPTI counts them (those of a replayed graph one by one). It is
// opened at run time.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/shared_library.h"

namespace kf {

class KernelCounter {
 public:
  KernelCounter()
      : cupti_({"libcupti.so.13", "libcupti.so.12", "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so"}) {
    if (!cupti_.problem().empty()) return;
    cupti_.require(register_, "cuptiActivityRegisterCallbacks");
    cupti_.require(enable_, "cuptiActivityEnable");
    cupti_.require(disable_, "cuptiActivityDisable");
    cupti_.require(flush_, "cuptiActivityFlushAll");
    cupti_.require(next_, "cuptiActivityGetNextRecord");
    if (cupti_.problem().empty() && register_(give_buffer, take_buffer) != 0)
      refused_ = "CUPTI takes no callbacks";
    next_of_take() = next_;
  }
  // Why nothing is counted; empty: it is.
  const std::string& problem() const { return cupti_.problem().empty() ? refused_ : cupti_.problem(); }

  // Of what `work` enqueues and waits for; -1 where nothing is counted.
  template <class F>
  int count(F&& work) {
    if (!problem().empty()) return -1;
    if (enable_(kKernel) != 0) {
      refused_ = "CUPTI does not record kernels here";
      return -1;
    }
    counted() = 0;
    try {
      work();
    } catch (...) {
      disable_(kKernel);
      throw;
    }
    flush_(1);
    disable_(kKernel);
    return counted();
  }

 private:
  static constexpr int kKernel = 10;  // CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL
  static constexpr std::size_t kBytes = std::size_t{1} << 20;
  using GiveBuffer = void(std::uint8_t**, std::size_t*, std::size_t*);
  using TakeBuffer = void(void*, std::uint32_t, std::uint8_t*, std::size_t, std::size_t);
  using Next = int(std::uint8_t*, std::size_t, const std::int32_t**);  // a record begins with its kind

  static std::atomic<int>& counted() {
    static std::atomic<int> n;
    return n;
  }
  static Next*& next_of_take() {
    static Next* next = nullptr;
    return next;
  }
  static void give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* max_records) {
    *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, kBytes));
    *bytes = *buffer == nullptr ? 0 : kBytes;
    *max_records = 0;
  }
  static void take_buffer(void*, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
    const std::int32_t* record = nullptr;
    while (next_of_take()(buffer, valid, &record) == 0) counted() += *record == kKernel || *record == 3;
    std::free(buffer);
  }

  SharedLibrary cupti_;
  std::string refused_;
  int (*register_)(GiveBuffer*, TakeBuffer*) = nullptr;
  int (*enable_)(int) = nullptr;
  int (*disable_)(int) = nullptr;
  int (*flush_)(std::uint32_t) = nullptr;
  Next* next_ = nullptr;
};

}  // namespace kf
