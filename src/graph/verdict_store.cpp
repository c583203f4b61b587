// Verdicts of measured fusion on disk.

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/build_id.h"
#include "core/files.h"
#include "core/log.h"
#include "kf/error.h"
#include "kf/verdict_store.h"

namespace kf {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Verdict, rule, signature, device, version, keep, unfused_ms, fused_ms,
                                   unfused_bytes, fused_bytes, max_error, reason)

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kFormat = 1;
// Beyond these, verdicts of other builds are dropped.
constexpr std::size_t kMaxVerdicts = 4096;

std::string key_of(const std::string& rule, const std::string& signature, const std::string& device,
                   const std::string& version) {
  return fmt::format("{}\n{}\n{}\n{}", rule, signature, device, version);
}

std::string key_of(const Verdict& v) { return key_of(v.rule, v.signature, v.device, v.version); }

// The version alone would keep verdicts on kernels that have changed since.
const std::string& this_build() {
  static const std::string version = fmt::format("{}+{}", KF_VERSION, build_id());
  return version;
}

std::map<std::string, Verdict> parse(std::istream& in) {
  const Json j = Json::parse(in);
  if (j.at("format").get<int>() != kFormat)
    throw std::runtime_error(fmt::format("format: expected {}, got {}", kFormat, j.at("format").dump()));
  std::map<std::string, Verdict> verdicts;
  for (const Json& entry : j.at("verdicts")) {
    auto v = entry.get<Verdict>();
    verdicts.insert_or_assign(key_of(v), std::move(v));
  }
  return verdicts;
}

void set_aside(const std::string& path, const char* why) {
  const std::string aside = path + ".corrupt";
  std::error_code error;
  fs::rename(path, aside, error);
  log_warning(fmt::format("fusion verdicts: {} cannot be read ({}); {}; measuring anew", path, why,
                          error ? "it could not be set aside" : "set aside as " + aside));
}

// What the file has; nothing where there is none, and where it is corrupt, which is set aside. Throws
// std::system_error where it may not be looked at.
std::map<std::string, Verdict> read_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return {};
  if (error) throw std::system_error(error);
  if (status.type() != fs::file_type::regular) return {};  // saving says what is in the way
  errno = 0;
  std::ifstream in(path);
  if (!in) throw std::system_error(errno ? errno : EIO, std::generic_category());
  try {
    return parse(in);
  } catch (const std::exception& e) {
    in.close();
    set_aside(path, e.what());
    return {};
  }
}

[[noreturn]] void fail_save(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::resource_exhausted, fmt::format("fusion verdicts: cannot write {}: {}", path, why),
              {{"path", path}});
}

// While it lives, no other writer is between reading the file and replacing it. The lock is on the folder: the file
// itself is replaced, and a file beside it would stay behind. Where locks are not to be had, writers may still lose
// each other's verdicts, which are then measured again.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : fd_(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (fd_ >= 0 && ::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
  }
  ~FolderLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

}  // namespace

VerdictStore::VerdictStore(std::string path) : path_(std::move(path)) {
  if (path_.empty()) return;
  try {
    verdicts_ = read_file(path_);
  } catch (const std::system_error& e) {
    log_warning(
        fmt::format("fusion verdicts: {} cannot be read ({}); measuring anew", path_, e.code().message()));
  }
}

std::string VerdictStore::default_path() {
  const fs::path folder = cache_folder();
  return folder.empty() ? "" : (folder / "fusion_verdicts.json").string();
}

std::optional<Verdict> VerdictStore::find(const std::string& rule, const std::string& signature,
                                          const std::string& device) const {
  std::lock_guard lock(mutex_);
  const auto it = verdicts_.find(key_of(rule, signature, device, this_build()));
  return it == verdicts_.end() ? std::nullopt : std::optional(it->second);
}

void VerdictStore::put(const Verdict& verdict) {
  Verdict v = verdict;
  if (v.version.empty()) v.version = this_build();
  // JSON has no NaN and no infinity: what it wrote for one could not be read again.
  if (!std::isfinite(v.max_error)) v.max_error = std::numeric_limits<double>::max();
  std::string key = key_of(v);
  std::lock_guard lock(mutex_);
  unsaved_.insert(key);
  verdicts_.insert_or_assign(std::move(key), std::move(v));
}

std::vector<Verdict> VerdictStore::list() const {
  std::lock_guard lock(mutex_);
  std::vector<Verdict> all;
  for (const auto& [key, v] : verdicts_) all.push_back(v);
  return all;
}

void VerdictStore::clear() {
  std::lock_guard lock(mutex_);
  verdicts_.clear();
  unsaved_.clear();
  cleared_ = true;
}

void VerdictStore::save() {
  if (path_.empty()) return;
  std::lock_guard lock(mutex_);
  std::error_code error;
  const fs::path folder = fs::path(path_).parent_path();
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error) fail_save(path_, error.message());

  const FolderLock folder_lock(folder);
  std::map<std::string, Verdict> merged;
  try {
    if (!cleared_) merged = read_file(path_);
  } catch (const std::system_error& e) {
    fail_save(path_, e.code().message());  // what cannot be read is not to be replaced
  }
  for (const std::string& key : unsaved_) merged.insert_or_assign(key, verdicts_.at(key));
  if (merged.size() > kMaxVerdicts)
    std::erase_if(merged, [](const auto& entry) { return entry.second.version != this_build(); });

  Json j = {{"format", kFormat}, {"verdicts", Json::array()}};
  for (const auto& [key, v] : merged) j["verdicts"].push_back(v);
  try {
    replace_file(path_, j.dump(1, ' ', false, Json::error_handler_t::replace) + '\n');
  } catch (const std::system_error& e) {
    fail_save(path_, e.code().message());
  }
  verdicts_ = std::move(merged);
  unsaved_.clear();
  cleared_ = false;
}

}  // namespace kf
