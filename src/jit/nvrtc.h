// NVIDIA's run-time compiler, opened at run time.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/shared_library.h"

namespace kf::jit {

// Its functions by its documentation (https://docs.nvidia.com/cuda/nvrtc/); results are 0 for success.
struct Nvrtc {
  using Program = struct Opaque*;

  explicit Nvrtc(const std::vector<std::string>& names);
  const std::string& problem() const { return library.problem(); }

  SharedLibrary library;
  int (*version)(int*, int*) = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*create)(Program*, const char* source, const char* name, int, const char* const*,
                const char* const*) = nullptr;
  int (*destroy)(Program*) = nullptr;
  int (*compile)(Program, int, const char* const*) = nullptr;
  int (*add_name)(Program, const char*) = nullptr;
  int (*lowered_name)(Program, const char*, const char**) = nullptr;
  int (*log_size)(Program, std::size_t*) = nullptr;
  int (*log)(Program, char*) = nullptr;
  int (*ptx_size)(Program, std::size_t*) = nullptr;
  int (*ptx)(Program, char*) = nullptr;
  int (*cubin_size)(Program, std::size_t*) = nullptr;
  int (*cubin)(Program, char*) = nullptr;
  int (*num_architectures)(int*) = nullptr;
  int (*architectures)(int*) = nullptr;
};

const Nvrtc& nvrtc();

// Where the toolkit's headers lie that belong to it; empty: nowhere that is known.
std::string include_folder(const Nvrtc& nvrtc);

}  // namespace kf::jit
