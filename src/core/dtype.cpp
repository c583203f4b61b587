#include "kf/dtype.h"

#include <iterator>

namespace kf {
namespace {

// Indexed by DType.
constexpr DTypeInfo kInfos[] = {
    {"f32", 1, 4, true, false},      {"f16", 1, 2, true, false},      {"bf16", 1, 2, true, false},
    {"fp8_e4m3", 1, 1, true, false}, {"fp8_e5m2", 1, 1, true, false}, {"i8", 1, 1, false, false},
    {"u8", 1, 1, false, false},      {"i32", 1, 4, false, false},     {"i64", 1, 8, false, false},
    {"boolean", 1, 1, false, false}, {"int4", 2, 1, false, false},    {"q4_0", 32, 18, false, true},
    {"q4_1", 32, 20, false, true},   {"q5_0", 32, 22, false, true},   {"q8_0", 32, 34, false, true},
    {"q4_k", 256, 144, false, true}, {"q6_k", 256, 210, false, true},
};
static_assert(std::size(kInfos) == kNumDTypes);

}  // namespace

const DTypeInfo& dtype_info(DType dtype) { return kInfos[static_cast<int>(dtype)]; }

const std::string& weight_dtype_names() {
  static const std::string kNames = [] {
    std::string names = "f32, f16, bf16", last;
    for (const DTypeInfo& info : kInfos) {
      if (!info.is_block) continue;
      if (!last.empty()) names += ", " + last;
      last = info.name;
    }
    return names + " or " + last;
  }();
  return kNames;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (int i = 0; i < kNumDTypes; ++i)
    if (name == kInfos[i].name) return static_cast<DType>(i);
  return std::nullopt;
}

}  // namespace kf
