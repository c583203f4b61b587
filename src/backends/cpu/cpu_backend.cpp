// What the CPU offers. Environment: KF_ISA (baseline, avx2, avx512, amx, neon, sve, best) lowers the instruction set, KF_NUM_THREADS sets
// the default number of threads; both are read once.

#include "backends/cpu/cpu_backend.h"

#ifdef KF_ARM_SVE
#include <sys/auxv.h>
#endif
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include <fmt/format.h>
#include <omp.h>

#include "backends/cpu/simd/matrix_units.h"
#include "backends/cpu/simd/targets.h"
#include "backends/cpu/team.h"
#include "core/fork.h"
#include "hwy/targets.h"
#include "kf/error.h"

namespace kf::cpu {
namespace {

std::string env(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

struct Isa {
  const char* name;
  std::int64_t targets;                      // Highway targets of this level
  bool (*has_more)() = [] { return true; };  // what it needs besides them
};
// Best first.
constexpr Isa kIsas[] = {
#if HWY_ARCH_X86
    {kMatrixIsa, HWY_AVX3 | HWY_AVX3_DL, has_matrix_units},
    {"avx512", HWY_AVX3 | HWY_AVX3_DL},
    {"avx2", HWY_AVX2},
#endif
#if defined(KF_ARM_SVE)  // some kernels by SVE, the others by NEON
    {"sve", HWY_NEON},
#elif HWY_ARCH_ARM_A64
    {"neon", HWY_NEON},
#else
    {"baseline", HWY_EMU128 | HWY_SCALAR},
#endif
};

// Applies KF_ISA to Highway's dispatch and returns the name of the best level left. Runs once: Highway chooses its
// target at the first dispatched call, for the process.
std::string choose_isa() {
  const std::string wanted = env("KF_ISA");
  bool found = wanted.empty() || wanted == "best";
  std::string names = "best";
  std::int64_t disabled = 0, kept = 0;
  if (!found)
    for (const Isa& isa : kIsas) {
      found = found || wanted == isa.name;
      (found ? kept : disabled) |= isa.targets;
      names += std::string(", ") + isa.name;
    }
  if (!found)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("KF_ISA: expected one of {}, got {}", names, wanted));
  disabled &= ~kept;
  if (disabled != 0) hwy::DisableTargets(disabled);
  const std::int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;
  bool allowed = wanted.empty() || wanted == "best";
  for (const Isa& isa : kIsas) {
    allowed = allowed || wanted == isa.name;
    if (allowed && (supported & isa.targets) && isa.has_more()) return isa.name;
  }
  return "baseline";
}

int default_threads() {
  const std::string wanted = env("KF_NUM_THREADS");
  if (wanted.empty()) return omp_get_max_threads();
  char* end = nullptr;
  const long n = std::strtol(wanted.c_str(), &end, 10);
  if (*end != '\0' || n < 1 || n > 4096)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("KF_NUM_THREADS: expected 1 to 4096, got {}", wanted));
  return static_cast<int>(n);
}

// The model's name, with its numbers where there are any: in a virtual machine many models have one name.
std::string cpu_name() {
  std::map<std::string, std::string> fields;  // of the first CPU
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line) && !line.empty();) {
    const std::size_t colon = line.find(':'), key_end = line.find_last_not_of(" \t", colon - 1);
    if (colon != std::string::npos && colon + 2 <= line.size())
      fields.emplace(line.substr(0, key_end + 1), line.substr(colon + 2));
  }
  const auto field = [&](const char* key) { return fields.contains(key) ? fields[key] : std::string(); };
  const std::string name = field("model name").empty() ? "CPU" : field("model name");
  if (field("cpu family").empty()) return name;
  return fmt::format("{} (family {}, model {})", name, field("cpu family"), field("model"));
}

std::size_t cache_bytes(int name, std::size_t otherwise) {
  const long n = sysconf(name);
  return n > 0 ? static_cast<std::size_t>(n) : otherwise;
}

Support available() {
#ifdef KF_ARM_SVE
  if ((getauxval(AT_HWCAP) & HWCAP_SVE) == 0)
    return Support::no("expected a processor with SVE, got one without; build kf with -DKF_ARM_SVE=OFF");
#endif
  return Support::yes();
}

DeviceCaps probe() {
  DeviceCaps c;
  c.device = {DeviceType::cpu, 0};
  c.isa = choose_isa();
  c.num_threads = default_threads();
  c.name = cpu_name();
  c.l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  c.l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
  c.l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 8 << 20);
  c.memory_bytes =
      static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
  return c;
}

}  // namespace

DeviceCaps capabilities(int index) {
  if (index != 0)
    throw Error(ErrorCode::unavailable, fmt::format("cpu: expected device index 0, got {}", index));
  static const DeviceCaps caps = probe();
  return caps;
}

const Backend& backend() {
  static const Backend b{.name = "cpu",
                         .device_type = DeviceType::cpu,
                         .available = available,
                         .capabilities = capabilities,
                         .kernels = kernels,
                         .hold_threads = Team::hold};
  return b;
}

}  // namespace kf::cpu
