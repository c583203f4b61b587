// The rotation of one token's heads, with QK-norm before and conversion after.
#pragma once

#include <cstdint>

#include "backends/cpu/rope/heads.h"

namespace kf::cpu {

inline constexpr std::int64_t kMaxRopeHeadDim = 1024;  // a head is held on the stack in f32

struct Rotation {
  const float* cos = nullptr;  // the token's rows of the tables
  const float* sin = nullptr;
  std::int64_t half = 0;  // their width: half of rotary_dim
  bool interleaved = false;
  const float* norm_weight = nullptr;  // optional
  float norm_eps = 0;
};

// `out` may lie over `x`.
void rotate_heads(const Rotation& rotation, const Heads& x, const Heads& out, std::int64_t num_heads,
                  std::int64_t head_dim);

}  // namespace kf::cpu
