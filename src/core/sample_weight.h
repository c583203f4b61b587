// What a token's probability is proportional to, bit for bit alike wherever a draw is made: compile what includes this
// without contraction to fused multiply-adds.
#pragma once

#include <bit>
#include <cstdint>

namespace kf {

// e^x for x <= 0: Cephes' expf in single operations; zero below 2^-126.
constexpr float exp_nonpositive(float x) {
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float k = shifted - 12582912.0f;
  float r = x - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = ((r * r) * p + r) + 1.0f;
  const std::uint32_t scaled =
      std::bit_cast<std::uint32_t>(e) + (std::bit_cast<std::uint32_t>(shifted) << 23);
  return x < -87.33655f ? 0.0f : std::bit_cast<float>(scaled);
}

}  // namespace kf
