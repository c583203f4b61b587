// Compiled code on disk: a header, length and bytes of each part, and a sum over all before it.

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include <fmt/format.h>

#include "core/files.h"
#include "core/hash.h"
#include "core/log.h"
#include "jit/compile.h"

namespace kf::jit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHeader = "kf cuda 1\n";

// Files are told apart by a hash; what a file holds is compared whole.
fs::path file_of(const std::string& folder, const std::string& key) {
  return fs::path(folder) / fmt::format("{:016x}", fnv1a(key));
}

void put(std::string& bytes, std::string_view part) {
  const std::uint64_t size = part.size();
  bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
  bytes += part;
}

bool take(std::string_view& bytes, std::string& part) {
  std::uint64_t size = 0;
  if (bytes.size() < sizeof size) return false;
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes.remove_prefix(sizeof size);
  if (bytes.size() < size) return false;
  part = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return true;
}

}  // namespace

std::string cuda_cache_folder() {
  const std::string folder = cache_folder();
  return folder.empty() ? "" : (fs::path(folder) / "cuda").string();
}

std::optional<CompiledCuda> read_cached(const std::string& folder, const std::string& key) {
  std::ifstream in(file_of(folder, key), std::ios::binary);
  if (!in) return std::nullopt;
  const std::string file((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::uint64_t sum = 0;
  if (!file.starts_with(kHeader) || file.size() < kHeader.size() + sizeof sum) return std::nullopt;
  std::string_view rest(file);
  std::memcpy(&sum, file.data() + file.size() - sizeof sum, sizeof sum);
  rest.remove_suffix(sizeof sum);
  if (fnv1a(rest) != sum) return std::nullopt;
  rest.remove_prefix(kHeader.size());
  std::string its_key, parameter;
  CompiledCuda c;
  c.cached = true;
  if (!take(rest, its_key) || its_key != key || !take(rest, c.symbol) || !take(rest, c.image))
    return std::nullopt;
  while (!rest.empty()) {
    if (!take(rest, parameter)) return std::nullopt;
    c.parameters.push_back(parameter);
  }
  return c;
}

void write_cached(const std::string& folder, const std::string& key, const CompiledCuda& c) {
  std::string bytes(kHeader);
  put(bytes, key);
  put(bytes, c.symbol);
  put(bytes, c.image);
  for (const std::string& p : c.parameters) put(bytes, p);
  const std::uint64_t sum = fnv1a(bytes);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  try {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw std::system_error(error);
    replace_file(file_of(folder, key).string(), bytes);
  } catch (const std::system_error& e) {
    log_warning(fmt::format("compiled CUDA code: cannot write to {} ({}); it will be compiled again", folder,
                            e.code().message()));
  }
}

}  // namespace kf::jit
