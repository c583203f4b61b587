#include "backends/plugin/library.h"

#include <dlfcn.h>

#include <filesystem>
#include <memory>
#include <system_error>

#include <fmt/format.h>

#include "backends/plugin/call.h"
#include "backends/plugin/status.h"

namespace kf::plugin {
namespace {

struct Closer {
  void operator()(void* handle) const { dlclose(handle); }
};
using Handle = std::unique_ptr<void, Closer>;

[[noreturn]] void fail(const std::string& path, const std::string& message) {
  throw Error(ErrorCode::unavailable, fmt::format("plug-in {}: {}", path, message), {{"path", path}});
}

Handle load(const std::string& path) {
  // dlopen() would look for a bare name in the system's folders.
  std::error_code ignored;
  const std::filesystem::path file = std::filesystem::absolute(path, ignored);
  if (path.empty() || !std::filesystem::is_regular_file(file, ignored))
    fail(path.empty() ? "''" : path,
         "expected the path of a shared library, got no such file; give the whole path, and in KF_PLUGINS "
         "put colons "
         "between several");
  Handle handle(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL));
  if (handle) return handle;
  const char* cause = dlerror();
  fail(path,
       fmt::format(
           "expected a shared library for this machine, got: {}; `file {}` says what it is, `ldd {}` which "
           "libraries it lacks",
           cause ? cause : "no cause", path, path));
}

template <class F>
F* function(const Handle& library, const std::string& path, const char* name) {
  void* symbol = dlsym(library.get(), name);
  if (!symbol)
    fail(path,
         fmt::format(
             "expected a function {}, got a library without it; a plug-in exports kf_plugin_abi_version and "
             "kf_plugin_open with C linkage (KF_PLUGIN_EXPORT of kf/kf_c.h)",
             name));
  return reinterpret_cast<F*>(symbol);
}

}  // namespace

Library open_library(const std::string& path) {
  Handle library = load(path);
  auto* const abi_version = function<decltype(kf_plugin_abi_version)>(library, path, "kf_plugin_abi_version");
  auto* const open = function<decltype(kf_plugin_open)>(library, path, "kf_plugin_open");
  const std::uint32_t version = abi_version();
  if (version != KF_ABI_VERSION)
    fail(path, fmt::format("expected ABI version {}, got {}; compile it against the kf/kf_c.h of this kf "
                           "({}), or use the kf "
                           "that it was made for",
                           KF_ABI_VERSION, version, KF_VERSION));
  const kf_plugin* plugin = nullptr;
  const Attempt a = attempt([&](kf_reason* reason) {
    plugin = open(&host(), reason);
    return KF_OK;
  });
  if (a.threw) fail(path, result_of("kf_plugin_open", a).reason);
  if (!plugin)
    fail(path,
         fmt::format("kf_plugin_open: {}", a.reason.text[0] ? a.reason.text : "failed without a reason"));
  return {library.release(), plugin};
}

}  // namespace kf::plugin
