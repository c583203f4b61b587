#include "jit/driver.h"

#include <fmt/format.h>

#include "kf/error.h"

namespace kf::jit {
namespace {

constexpr int kMaxDynamicSharedBytes = 8;            // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr std::size_t kSharedBytesOfAny = 48 << 10;  // more a function must be allowed

// The context is the thread's while this lives.
class Current {
 public:
  Current(const Driver& driver, Driver::Context context) : driver_(driver) {
    driver_.check(driver_.push_context(context), "cuCtxPushCurrent");
  }
  ~Current() {
    Driver::Context popped = nullptr;
    driver_.pop_context(&popped);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const Driver& driver_;
};

}  // namespace

Driver::Driver(const std::vector<std::string>& names) : library(names) {
  if (!problem().empty()) return;
  library.require(init, "cuInit");
  library.require(error_name, "cuGetErrorName");
  library.require(device_get, "cuDeviceGet");
  library.require(retain_context, "cuDevicePrimaryCtxRetain");
  library.require(push_context, "cuCtxPushCurrent_v2");
  library.require(pop_context, "cuCtxPopCurrent_v2");
  library.require(load_module, "cuModuleLoadData");
  library.require(unload_module, "cuModuleUnload");
  library.require(get_function, "cuModuleGetFunction");
  library.require(set_attribute, "cuFuncSetAttribute");
  library.require(launch_kernel, "cuLaunchKernel");
}

void Driver::check(int status, const char* what) const {
  if (status == 0) return;
  const char* name = nullptr;
  if (error_name(status, &name) != 0 || name == nullptr) name = "an unknown error";
  throw Error(ErrorCode::unavailable, fmt::format("{}: {} ({})", what, name, status));
}

const Driver& driver() {
  // Lives as long as the process: plans that end with it refer to it.
  static const Driver& d = *new Driver({"libcuda.so.1", "libcuda.so"});
  return d;
}

LoadedFunction::LoadedFunction(const Driver& driver, int device_index, const std::string& image,
                               const std::string& symbol, std::size_t shared_bytes)
    : driver_(driver) {
  driver_.check(driver_.init(0), "cuInit");
  int device = 0;
  driver_.check(driver_.device_get(&device, device_index), "cuDeviceGet");
  // The runtime's context, too. It is never released: plans may outlive whatever else uses it.
  driver_.check(driver_.retain_context(&context_, device), "cuDevicePrimaryCtxRetain");
  const Current current(driver_, context_);
  driver_.check(driver_.load_module(&module_, image.c_str()), "cuModuleLoadData");
  try {
    driver_.check(driver_.get_function(&function_, module_, symbol.c_str()), "cuModuleGetFunction");
    if (shared_bytes > kSharedBytesOfAny)
      driver_.check(driver_.set_attribute(function_, kMaxDynamicSharedBytes, static_cast<int>(shared_bytes)),
                    fmt::format("cuFuncSetAttribute: {} bytes of shared memory", shared_bytes).c_str());
  } catch (...) {
    driver_.unload_module(module_);
    throw;
  }
}

LoadedFunction::~LoadedFunction() {
  if (driver_.push_context(context_) != 0) return;  // the process ends
  driver_.unload_module(module_);
  Driver::Context popped = nullptr;
  driver_.pop_context(&popped);
}

void LoadedFunction::launch(const std::array<unsigned, 3>& grid, const std::array<unsigned, 3>& block,
                            unsigned shared_bytes, void* stream, void** parameters) const {
  const Current current(driver_, context_);
  driver_.check(driver_.launch_kernel(function_, grid[0], grid[1], grid[2], block[0], block[1], block[2],
                                      shared_bytes, stream, parameters, nullptr),
                "cuLaunchKernel");
}

}  // namespace kf::jit
