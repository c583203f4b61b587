#include "core/shared_library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <sstream>

namespace kf {
namespace {

struct Folders {
  std::mutex mutex;
  std::vector<std::string> added;
};

Folders& folders() {
  static Folders f;
  return f;
}

std::vector<std::string> searched() {
  std::vector<std::string> all;
  if (const char* const list = std::getenv("KF_LIBRARY_PATH")) {
    std::istringstream parts(list);
    for (std::string folder; std::getline(parts, folder, ':');)
      if (!folder.empty()) all.push_back(folder);
  }
  Folders& f = folders();
  const std::lock_guard lock(f.mutex);
  all.insert(all.end(), f.added.rbegin(), f.added.rend());
  return all;
}

}  // namespace

void add_library_folder(const std::string& folder) {
  Folders& f = folders();
  const std::lock_guard lock(f.mutex);
  f.added.push_back(folder);
}

SharedLibrary::SharedLibrary(const std::vector<std::string>& names) {
  const auto open = [&](const std::string& file) {
    if (handle_ == nullptr && (handle_ = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) != nullptr)
      name_ = file;
  };
  std::error_code ignored;
  const std::vector<std::string> in = searched();
  std::string there;  // what could not be opened although it is there says more than what is not
  for (const std::string& folder : in)
    for (const std::string& name : names) {
      const std::filesystem::path file = std::filesystem::path(folder) / name;
      if (handle_ != nullptr || !std::filesystem::exists(file, ignored)) continue;
      open(file.string());
      if (handle_ == nullptr && there.empty()) there = ::dlerror();
    }
  for (const std::string& name : names) open(name);
  if (handle_ != nullptr) return;
  const char* const reason = ::dlerror();
  problem_ = !there.empty() ? there : reason != nullptr ? reason : "no name to open";
}

void* SharedLibrary::find(const char* symbol) const {
  return handle_ == nullptr ? nullptr : ::dlsym(handle_, symbol);
}

std::string SharedLibrary::path() const {
  link_map* map = nullptr;
  if (handle_ == nullptr || ::dlinfo(handle_, RTLD_DI_LINKMAP, &map) != 0) return {};
  return map->l_name;
}

}  // namespace kf
