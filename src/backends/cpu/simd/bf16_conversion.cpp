#include "backends/cpu/simd/bf16_conversion.h"

namespace kf::cpu {

bool has_bf16_conversion() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") != 0;
  return has;
#else
  return false;
#endif
}

}  // namespace kf::cpu
