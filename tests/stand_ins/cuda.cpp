// Stands in for NVRTC and the driver where there is no GPU: it reads a function's parameter list, and launches on the host the
// functions that it knows by name. Device addresses are those of tests/toy_device.h.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr std::uintptr_t kShift = std::uintptr_t{1} << 62;

struct Program {
  std::string source, file, entry, log, options;
};

std::string parameter_list(const Program& p) {
  std::size_t at = p.source.find(" " + p.entry + "(");
  if (at == std::string::npos) return "?";
  at += p.entry.size() + 2;
  return p.source.substr(at, p.source.find(')', at) - at);
}

std::string ptx_of(const Program& p) {
  std::string ptx = ".visible .entry " + p.entry + "(\n";
  std::istringstream list(parameter_list(p));
  int n = 0;
  for (std::string one; std::getline(list, one, ','); ++n) {
    const auto has = [&](const char* word) { return one.find(word) != std::string::npos; };
    const std::string type = has("*")        ? "u64 .ptr .align 1"
                             : has("float")  ? "f32"
                             : has("double") ? "f64"
                             : has("long")   ? "u64"
                             : has("bool")   ? "u8"
                                             : "u32";
    if (n > 0) ptx += ",\n";
    ptx += "\t.param ." + type + " " + p.entry + "_param_" + std::to_string(n);
  }
  return ptx + "\n)\n{ ret; }\n";
}

int give(const std::string& text, char* out) {
  std::memcpy(out, text.c_str(), text.size() + 1);
  return 0;
}

struct Launched {
  unsigned grid[3], block[3], shared;
  void* stream;
  int compilations, launches, loaded, current_depth;
} state{};
int depth = 0;

template <class T>
T* host(void* parameter) {
  return reinterpret_cast<T*>(*static_cast<std::uintptr_t*>(parameter) - kShift);
}

// silu(const float* x, float* out, long long n), and `wrong`, which copies.
void run(const std::string& name, void** parameters, unsigned threads) {
  const float* x = host<float>(parameters[0]);
  float* out = host<float>(parameters[1]);
  const auto n = *static_cast<std::int64_t*>(parameters[2]);
  for (std::int64_t i = 0; i < n && i < threads; ++i)
    out[i] = name == "wrong" ? x[i] : x[i] / (1 + std::exp(-x[i]));
}

}  // namespace

extern "C" {

Launched* kf_stand_in_state() { return &state; }

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0; }
const char* nvrtcGetErrorString(int) { return "NVRTC_ERROR_COMPILATION"; }
int nvrtcCreateProgram(Program** p, const char* source, const char* file, int, const char* const*,
                       const char* const*) {
  *p = new Program{source, file, {}, {}, {}};
  return 0;
}
int nvrtcDestroyProgram(Program** p) {
  delete *p;
  return 0;
}
int nvrtcAddNameExpression(Program* p, const char* entry) {
  p->entry = entry;
  return 0;
}
int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
  ++state.compilations;
  for (int i = 0; i < count; ++i) p->options += std::string(options[i]) + " ";
  if (parameter_list(*p) != "?") return 0;
  p->log = p->file + "(1): error: identifier \"" + p->entry + "\" is undefined";
  return 6;
}
int nvrtcGetLoweredName(Program* p, const char*, const char** name) {
  *name = p->entry.c_str();
  return 0;
}
int nvrtcGetProgramLogSize(Program* p, std::size_t* size) {
  *size = p->log.size() + 1;
  return 0;
}
int nvrtcGetProgramLog(Program* p, char* log) { return give(p->log, log); }
int nvrtcGetPTXSize(Program* p, std::size_t* size) {
  *size = ptx_of(*p).size() + 1;
  return 0;
}
int nvrtcGetPTX(Program* p, char* ptx) { return give(ptx_of(*p), ptx); }
int nvrtcGetCUBINSize(Program* p, std::size_t* size) {
  *size = p->options.find("=compute_") != std::string::npos ? 0 : p->entry.size() + 1;
  return 0;
}
int nvrtcGetCUBIN(Program* p, char* image) { return give(p->entry, image); }
int nvrtcGetNumSupportedArchs(int* count) {
  *count = 3;
  return 0;
}
int nvrtcGetSupportedArchs(int* known) {
  known[0] = 80, known[1] = 90, known[2] = 100;
  return 0;
}

int cuInit(unsigned) { return 0; }
int cuGetErrorName(int, const char** name) {
  *name = "CUDA_ERROR_NOT_FOUND";
  return 0;
}
int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &state;
  return 0;
}
int cuCtxPushCurrent_v2(void*) {
  ++depth;
  return 0;
}
int cuCtxPopCurrent_v2(void**) {
  --depth;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  ++state.loaded;
  *module = new std::string(static_cast<const char*>(image));
  return 0;
}
int cuModuleUnload(void* module) {
  --state.loaded;
  delete static_cast<std::string*>(module);
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (*static_cast<std::string*>(module) != name) return 500;
  *function = module;
  return 0;
}
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** parameters, void**) {
  const Launched l{{gx, gy, gz},       {bx, by, bz},       shared,       stream,
                   state.compilations, state.launches + 1, state.loaded, depth};
  state = l;
  run(*static_cast<std::string*>(function), parameters, gx * bx);
  return 0;
}
}
