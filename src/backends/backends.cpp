// The one list of what is compiled in, and behind it what was registered and the plug-ins that were loaded.

#include <charconv>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/cpu/cpu_backend.h"
#ifdef KF_CUDA
#include "backends/cuda/cuda_backend.h"
#endif
#ifdef KF_HIP
#include "backends/hip/hip_backend.h"
#endif
#include "backends/plugin/backend.h"
#include "backends/plugin/library.h"
#include "core/log.h"
#include "kf/error.h"
#include "kf/plugin.h"

namespace kf {
namespace {

class Backends {
 public:
  static Backends& all() {
    static Backends* const backends = new Backends;  // dispatchers that are never destroyed refer to it
    return *backends;
  }

  std::span<const Backend* const> list() {
    std::lock_guard lock(mutex_);
    load_named();
    return lists_.back();
  }

  const Backend& load(const std::string& path) {
    std::lock_guard lock(mutex_);
    load_named();
    return load_locked(path);
  }

  const Backend& add(Backend backend) {
    check(backend);
    std::lock_guard lock(mutex_);
    load_named();
    for (const Backend* b : lists_.back())
      if (b->name == backend.name) fail(backend, "a name of its own", "that of another backend");
    return append(registered_.emplace_back(std::move(backend)));
  }

  std::vector<PluginReport> reports() {
    std::lock_guard lock(mutex_);
    load_named();
    return reports_;
  }

 private:
  Backends() {
    lists_.push_back({
        &cpu::backend(),
#ifdef KF_CUDA
        &cuda::backend(),
#endif
#ifdef KF_HIP
        &hip::backend(),
#endif
    });
  }

  // Those of KF_PLUGINS, once. One that fails does not keep the others, or the process, from going on.
  void load_named() {
    if (named_loaded_) return;
    named_loaded_ = true;
    const char* value = std::getenv("KF_PLUGINS");
    std::string_view rest = value ? value : "";
    while (!rest.empty()) {
      const std::size_t colon = std::min(rest.find(':'), rest.size());
      const std::string path(rest.substr(0, colon));
      rest.remove_prefix(std::min(colon + 1, rest.size()));
      if (path.empty()) continue;
      try {
        load_locked(path);
      } catch (const Error& e) {
        log_warning(fmt::format("KF_PLUGINS: {}; going on without it", e.what()));
      }
    }
  }

  const Backend& load_locked(const std::string& path) {
    try {
      const plugin::Library library = plugin::open_library(path);
      for (const Loaded& l : loaded_)
        if (l.handle == library.handle) return l.backend;
      Backend backend = plugin::make_backend(*library.plugin, path);
      for (const Backend* b : lists_.back())
        if (b->name == backend.name)
          throw Error(ErrorCode::unavailable,
                      fmt::format("plug-in {}: expected a backend of another name than those that are here, "
                                  "got '{}'; load one "
                                  "of the two, or give it another name",
                                  path, backend.name),
                      {{"path", path}});
      const Loaded& l = loaded_.emplace_back(Loaded{library.handle, std::move(backend)});
      reports_.push_back({path, l.backend.name, library.plugin->version, {}});
      return append(l.backend);
    } catch (const Error& e) {
      reports_.push_back({path, {}, {}, e.what()});
      throw;
    }
  }

  const Backend& append(const Backend& backend) {
    std::vector<const Backend*> longer = lists_.back();
    longer.push_back(&backend);
    lists_.push_back(std::move(longer));
    return backend;
  }

  [[noreturn]] static void fail(const Backend& b, const std::string& expected, const std::string& got) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("register_backend: '{}': expected {}, got {}", b.name, expected, got),
                {{"backend", b.name}});
  }
  static void check(const Backend& b) {
    if (b.name.empty()) fail(b, "a name", "none");
    for (const auto& [name, given] : {std::pair{"available", static_cast<bool>(b.available)},
                                      std::pair{"capabilities", static_cast<bool>(b.capabilities)},
                                      std::pair{"kernels", static_cast<bool>(b.kernels)}})
      if (!given) fail(b, fmt::format("a function {}", name), "none");
    const DeviceMemory& m = b.memory;
    const int given = !!m.allocate + !!m.free + !!m.copy + !!m.synchronize;
    if (given != 0 && given != 4)
      fail(b, "memory's allocate, free, copy and synchronize, or none of them",
           fmt::format("{} of them", given));
  }

  struct Loaded {
    void* handle;
    Backend backend;
  };

  std::mutex mutex_;
  bool named_loaded_ = false;
  std::deque<Loaded> loaded_;
  std::deque<Backend> registered_;
  std::deque<std::vector<const Backend*>>
      lists_;  // the last is in force; whoever has an earlier one keeps it
  std::vector<PluginReport> reports_;
};

}  // namespace

std::span<const Backend* const> all_backends() { return Backends::all().list(); }
const Backend& load_plugin(const std::string& path) { return Backends::all().load(path); }
std::vector<PluginReport> plugin_reports() { return Backends::all().reports(); }
const Backend& register_backend(Backend backend) { return Backends::all().add(std::move(backend)); }

Device parse_device(std::string_view name) {
  constexpr DeviceType kTypes[] = {DeviceType::cpu,    DeviceType::cuda, DeviceType::rocm,
                                   DeviceType::ascend, DeviceType::mlu,  DeviceType::kunlun};
  const std::size_t colon = name.find(':');
  const std::string_view digits = colon == name.npos ? "0" : name.substr(colon + 1);
  Device device;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), device.index);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size() && device.index >= 0;
  for (const DeviceType type : kTypes) {
    if (!is_number || name.substr(0, colon) != device_type_name(type)) continue;
    device.type = type;
    return device;
  }
  throw_invalid(
      fmt::format("device: expected cpu, cuda, rocm, ascend, mlu or kunlun, alone or with a number (cuda:1), "
                  "got '{}'",
                  name));
}

const Backend& backend_by_name(const std::string& name) {
  std::vector<std::string> names;
  for (const Backend* b : all_backends()) {
    if (b->name == name) return *b;
    names.push_back(b->name);
  }
  throw Error(ErrorCode::unavailable,
              fmt::format("backend: expected one of those compiled in or loaded ({}), got {}",
                          fmt::join(names, ", "), name));
}

}  // namespace kf
