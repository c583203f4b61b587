#include "backends/cuda/supports.h"

#include <cstdlib>

#include <fmt/format.h>

namespace kf::cuda {
namespace {

constexpr std::int64_t kMaxCount = (std::int64_t{1} << 31) - 1024;

}  // namespace

Support rows_fit(const TensorView& t) {
  if (t.rank > 0 && (t.dim(-1) > kMaxCount || num_rows(t) > kMaxCount))
    return Support::no(
        fmt::format("shape {}: rows, and elements of a row, are to be below 2^31", shape_string(t)));
  return Support::yes();
}

Support blocks_fit(const TensorView& t) {
  if (t.rank > 0 && (t.numel() >> 8) + num_rows(t) > kMaxCount)
    return Support::no(fmt::format("shape {}: too many elements for one grid", shape_string(t)));
  return Support::yes();
}

Support heads_fit(std::int64_t num_tokens, std::int64_t num_heads, std::int64_t head_dim) {
  if (head_dim > kMaxCount / 2 || num_tokens * num_heads > kMaxCount / 32)  // up to a warp each
    return Support::no(
        fmt::format("{} heads of {} elements: too many for one grid", num_tokens * num_heads, head_dim));
  return Support::yes();
}

Support plain_dtype(const char* name, const TensorView& t) {
  if (is_activation_dtype(t.dtype)) return Support::yes();
  return Support::no(fmt::format("{} {}: this kernel takes f32, f16 and bf16", name, dtype_name(t.dtype)));
}

bool has_clusters(const DeviceCaps& caps) {
  return caps.isa.starts_with("sm_") && std::atoi(caps.isa.c_str() + 3) >= 90 &&
         compiled_with_clusters(caps.device.index);
}

}  // namespace kf::cuda
