#include "core/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

namespace kf {

namespace fs = std::filesystem;

std::string cache_folder() {
  const auto from = [](const char* variable) -> fs::path {
    const char* value = std::getenv(variable);
    return value != nullptr ? value : "";
  };
  fs::path folder = from("KF_CACHE_DIR");
  if (folder.empty() && !from("XDG_CACHE_HOME").empty()) folder = from("XDG_CACHE_HOME") / "kf";
  if (folder.empty() && !from("HOME").empty()) folder = from("HOME") / ".cache" / "kf";
  return folder.string();
}

std::string write_beside(const std::string& path, const std::string& bytes) {
  const auto fail = [](int error) { throw std::system_error(error, std::generic_category()); };
  std::string name;
  int fd = -1;
  // Not mkstemp, whose files only their owner may read.
  for (int i = 0; fd < 0 && i < 1000; ++i) {
    name = fmt::format("{}.{}.{}.tmp", path, ::getpid(), i);
    fd = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno != EEXIST) break;
  }
  if (fd < 0) fail(errno);
  std::size_t written = 0;
  int error = 0;
  while (error == 0 && written < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + written, bytes.size() - written);
    if (n >= 0)
      written += static_cast<std::size_t>(n);
    else if (errno != EINTR)
      error = errno;
  }
  if (::close(fd) != 0 && error == 0) error = errno;
  if (error != 0) {
    ::unlink(name.c_str());
    fail(error);
  }
  return name;
}

void replace_file(const std::string& path, const std::string& bytes) {
  const std::string beside = write_beside(path, bytes);
  std::error_code error;
  fs::rename(beside, path, error);
  if (!error) return;
  ::unlink(beside.c_str());
  throw std::system_error(error);
}

}  // namespace kf
