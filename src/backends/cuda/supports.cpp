#include "backends/cuda/supports.h"

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
    return Support::no(fmt::format("shape {}: this kernel takes up to {} blocks of 256 elements",
                                   shape_string(t), kMaxCount));
  return Support::yes();
}

Support heads_fit(std::int64_t num_tokens, std::int64_t num_heads, std::int64_t head_dim) {
  if (head_dim > kMaxCount / 2 || num_tokens * num_heads > kMaxCount / 32)  // up to a warp each
    return Support::no(
        fmt::format("{} heads of {} elements: this kernel takes up to {} heads, of up to {} elements",
                    num_tokens * num_heads, head_dim, kMaxCount / 32, kMaxCount / 2));
  return Support::yes();
}

Support plain_dtype(const char* name, const TensorView& t) {
  if (is_activation_dtype(t.dtype)) return Support::yes();
  return Support::no(fmt::format("{} {}: this kernel takes f32, f16 and bf16", name, dtype_name(t.dtype)));
}

Support shared_fits(std::size_t bytes, const DeviceCaps& caps) {
  constexpr std::size_t kOfSystem = 1024;  // that each block costs beside its own
  if (caps.l1_bytes == 0 || bytes + kOfSystem <= caps.l1_bytes) return Support::yes();
  return Support::no(fmt::format("{}: this kernel needs {} KiB of shared memory a block, which may have {}",
                                 caps.isa, (bytes + 1023) >> 10, (caps.l1_bytes - kOfSystem) >> 10));
}

}  // namespace kf::cuda
