#include "jit/nvrtc.h"

#include <cstdlib>
#include <filesystem>

namespace kf::jit {
namespace {

// NVRTC opens its built-in functions by a name that the loader finds only in folders on its path; what is loaded already it
// finds anywhere.
void open_builtins(const SharedLibrary& nvrtc) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  for (const fs::directory_entry& e : fs::directory_iterator(fs::path(nvrtc.path()).parent_path(), ignored))
    if (e.path().filename().string().starts_with("libnvrtc-builtins.so")) SharedLibrary({e.path().string()});
}

}  // namespace

Nvrtc::Nvrtc(const std::vector<std::string>& names) : library(names) {
  if (!problem().empty()) return;
  open_builtins(library);
  library.require(version, "nvrtcVersion");
  library.require(error_string, "nvrtcGetErrorString");
  library.require(create, "nvrtcCreateProgram");
  library.require(destroy, "nvrtcDestroyProgram");
  library.require(compile, "nvrtcCompileProgram");
  library.require(add_name, "nvrtcAddNameExpression");
  library.require(lowered_name, "nvrtcGetLoweredName");
  library.require(log_size, "nvrtcGetProgramLogSize");
  library.require(log, "nvrtcGetProgramLog");
  library.require(ptx_size, "nvrtcGetPTXSize");
  library.require(ptx, "nvrtcGetPTX");
  library.require(cubin_size, "nvrtcGetCUBINSize");
  library.require(cubin, "nvrtcGetCUBIN");
  library.require(num_architectures, "nvrtcGetNumSupportedArchs");
  library.require(architectures, "nvrtcGetSupportedArchs");
}

const Nvrtc& nvrtc() {
  // Lives as long as the process: plans that end with it refer to it.
  static const Nvrtc& n =
      *new Nvrtc({"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"});
  return n;
}

std::string include_folder(const Nvrtc& nvrtc) {
  namespace fs = std::filesystem;
  std::vector<fs::path> candidates;
  std::error_code ignored;
  if (const fs::path library = fs::weakly_canonical(nvrtc.library.path(), ignored); !library.empty()) {
    const fs::path folder = library.parent_path();
    candidates = {folder / "../include",
                  folder / "../../cuda_runtime/include"};  // the toolkit's and the wheels' layouts
  }
  if (const char* const home = std::getenv("CUDA_HOME")) candidates.push_back(fs::path(home) / "include");
  candidates.emplace_back("/usr/local/cuda/include");
  for (const fs::path& c : candidates)
    if (fs::exists(c / "cuda_fp16.h", ignored)) return c.lexically_normal().string();
  return {};
}

}  // namespace kf::jit
