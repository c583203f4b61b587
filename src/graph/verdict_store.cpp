// Verdicts of measured fusion on disk.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <nlohmann/json.hpp>

#include "kf/error.h"
#include "kf/graph.h"

namespace kf {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kFormat = 1;

std::string key_of(const std::string& rule, const std::string& signature, const std::string& device,
                   const std::string& version) {
  return fmt::format("{}\n{}\n{}\n{}", rule, signature, device, version);
}

Json to_json(const Verdict& v) {
  return {{"rule", v.rule},
          {"signature", v.signature},
          {"device", v.device},
          {"version", v.version},
          {"keep", v.keep},
          {"unfused_ms", v.unfused_ms},
          {"fused_ms", v.fused_ms},
          {"unfused_bytes", v.unfused_bytes},
          {"fused_bytes", v.fused_bytes},
          {"max_error", v.max_error},
          {"reason", v.reason}};
}

Verdict from_json(const Json& j) {
  Verdict v;
  v.rule = j.at("rule").get<std::string>();
  v.signature = j.at("signature").get<std::string>();
  v.device = j.at("device").get<std::string>();
  v.version = j.at("version").get<std::string>();
  v.keep = j.at("keep").get<bool>();
  v.unfused_ms = j.at("unfused_ms").get<double>();
  v.fused_ms = j.at("fused_ms").get<double>();
  v.unfused_bytes = j.at("unfused_bytes").get<double>();
  v.fused_bytes = j.at("fused_bytes").get<double>();
  v.max_error = j.at("max_error").get<double>();
  v.reason = j.at("reason").get<std::string>();
  return v;
}

std::vector<Verdict> read_file(std::istream& in) {
  const Json j = Json::parse(in);
  if (j.at("format").get<int>() != kFormat)
    throw std::runtime_error(fmt::format("format: expected {}, got {}", kFormat, j.at("format").dump()));
  std::vector<Verdict> verdicts;
  for (const Json& entry : j.at("verdicts")) verdicts.push_back(from_json(entry));
  return verdicts;
}

void set_aside(const std::string& path, const char* why) {
  const std::string aside = path + ".corrupt";
  std::error_code error;
  fs::rename(path, aside, error);
  spdlog::warn("fusion verdicts: {} cannot be read ({}); {}; measuring anew", path, why,
               error ? "it could not be set aside" : "set aside as " + aside);
}

[[noreturn]] void fail_save(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::resource_exhausted, fmt::format("fusion verdicts: cannot write {}: {}", path, why),
              {{"path", path}});
}

}  // namespace

VerdictStore::VerdictStore(std::string path) : path_(std::move(path)) {
  if (path_.empty() || !fs::is_regular_file(path_)) return;  // nothing stored yet
  std::ifstream in(path_);
  try {
    for (const Verdict& v : read_file(in)) put(v);
  } catch (const std::exception& e) {
    in.close();
    verdicts_.clear();
    set_aside(path_, e.what());
  }
}

std::string VerdictStore::default_path() {
  const auto from = [](const char* variable) -> fs::path {
    const char* value = std::getenv(variable);
    return value != nullptr ? value : "";
  };
  fs::path folder = from("KF_CACHE_DIR");
  if (folder.empty() && !from("XDG_CACHE_HOME").empty()) folder = from("XDG_CACHE_HOME") / "kf";
  if (folder.empty() && !from("HOME").empty()) folder = from("HOME") / ".cache" / "kf";
  return folder.empty() ? "" : (folder / "fusion_verdicts.json").string();
}

std::optional<Verdict> VerdictStore::find(const std::string& rule, const std::string& signature,
                                          const std::string& device) const {
  std::lock_guard lock(mutex_);
  const auto it = verdicts_.find(key_of(rule, signature, device, KF_VERSION));
  return it == verdicts_.end() ? std::nullopt : std::optional(it->second);
}

void VerdictStore::put(const Verdict& verdict) {
  Verdict v = verdict;
  if (v.version.empty()) v.version = KF_VERSION;
  std::string key = key_of(v.rule, v.signature, v.device, v.version);
  std::lock_guard lock(mutex_);
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
}

void VerdictStore::save() const {
  if (path_.empty()) return;
  Json j = {{"format", kFormat}, {"verdicts", Json::array()}};
  for (const Verdict& v : list()) j["verdicts"].push_back(to_json(v));

  // Written beside and renamed over: whoever reads sees the old file or the new one, never a part.
  std::error_code error;
  if (const fs::path folder = fs::path(path_).parent_path(); !folder.empty())
    fs::create_directories(folder, error);
  if (error) fail_save(path_, error.message());
  const std::string beside = fmt::format("{}.{}.tmp", path_, ::getpid());
  {
    std::ofstream out(beside, std::ios::trunc);
    out << j.dump(1, ' ', false, Json::error_handler_t::replace) << '\n';
    out.close();
    if (!out) {
      fs::remove(beside, error);
      fail_save(path_, "the file cannot be created or the disk is full");
    }
  }
  fs::rename(beside, path_, error);
  if (error) {
    const std::string why = error.message();
    fs::remove(beside, error);
    fail_save(path_, why);
  }
}

}  // namespace kf
