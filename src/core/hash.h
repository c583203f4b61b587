// Hashes that are the same on every machine and in every build.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace kf {

// FNV-1a of 64 bits (Fowler, Noll and Vo).
inline constexpr std::uint64_t kFnvOffset = 14695981039346656037u, kFnvPrime = 1099511628211u;

inline std::uint64_t fnv1a(std::string_view bytes) {
  std::uint64_t h = kFnvOffset;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * kFnvPrime;
  return h;
}

// For much data: as FNV-1a, by words of 8 bytes, whose high bits are brought down in between.
inline std::uint64_t checksum(const void* data, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  std::uint64_t h = kFnvOffset;
  std::size_t i = 0;
  for (std::uint64_t word; i + sizeof word <= bytes; i += sizeof word) {
    std::memcpy(&word, p + i, sizeof word);
    h = std::rotl((h ^ word) * kFnvPrime, 29);
  }
  for (; i < bytes; ++i) h = (h ^ p[i]) * kFnvPrime;
  return h;
}

}  // namespace kf
