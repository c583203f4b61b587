// Philox 4x32-10, a counter-based random number generator (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", 2011).
#pragma once

#include <array>
#include <cstdint>

namespace kf {

constexpr std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter,
                                                     std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0],
                        b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// The draw of a row at a step of a seed's stream: 53 random bits in [0, 1).
constexpr double uniform_draw(std::int64_t seed, std::int64_t step, std::int64_t row) {
  const auto low = [](std::int64_t v) { return static_cast<std::uint32_t>(static_cast<std::uint64_t>(v)); };
  const auto high = [](std::int64_t v) {
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(v) >> 32);
  };
  const auto bits = philox4x32_10({low(step), high(step), low(row), high(row)}, {low(seed), high(seed)});
  return static_cast<double>(((std::uint64_t{bits[0]} << 32) | bits[1]) >> 11) * 0x1p-53;
}

}  // namespace kf
