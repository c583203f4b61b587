// The part of NVIDIA's driver that loads compiled code and launches it, opened at run time.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "core/shared_library.h"

namespace kf::jit {

// Its functions by its documentation (https://docs.nvidia.com/cuda/cuda-driver-api/); results are 0 for success.
struct Driver {
  using Context = struct OpaqueContext*;
  using ModuleHandle = struct OpaqueModule*;
  using Function = struct OpaqueFunction*;

  explicit Driver(const std::vector<std::string>& names);
  const std::string& problem() const { return library.problem(); }
  // Throws unavailable with the driver's words.
  void check(int status, const char* what) const;

  SharedLibrary library;
  int (*init)(unsigned) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
  int (*device_get)(int*, int) = nullptr;
  int (*retain_context)(Context*, int) = nullptr;
  int (*push_context)(Context) = nullptr;
  int (*pop_context)(Context*) = nullptr;
  int (*load_module)(ModuleHandle*, const void*) = nullptr;
  int (*unload_module)(ModuleHandle) = nullptr;
  int (*get_function)(Function*, ModuleHandle, const char*) = nullptr;
  int (*set_attribute)(Function, int, int) = nullptr;
  int (*launch_kernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       void* stream, void** parameters, void** extra) = nullptr;
};

const Driver& driver();

// A function of an image, loaded on a device until the last that holds it goes.
class LoadedFunction {
 public:
  LoadedFunction(const Driver& driver, int device_index, const std::string& image, const std::string& symbol,
                 std::size_t shared_bytes);
  ~LoadedFunction();
  LoadedFunction(const LoadedFunction&) = delete;
  LoadedFunction& operator=(const LoadedFunction&) = delete;
  void launch(const std::array<unsigned, 3>& grid, const std::array<unsigned, 3>& block,
              unsigned shared_bytes, void* stream, void** parameters) const;

 private:
  const Driver& driver_;
  Driver::Context context_ = nullptr;
  Driver::ModuleHandle module_ = nullptr;
  Driver::Function function_ = nullptr;
};

}  // namespace kf::jit
