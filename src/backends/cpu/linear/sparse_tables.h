// Which of the next values each lane takes when a mask of up to eight lanes is expanded.
#pragma once

#include <array>
#include <cstdint>

namespace kf::cpu {

struct ExpandTable {
  // Of a mask, lane by lane: the number of bits below the lane's, with the top bit set where its own is not.
  alignas(64) std::int8_t lanes[256][8];

  constexpr ExpandTable() : lanes{} {
    for (int mask = 0; mask < 256; ++mask) {
      int below = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const bool set = (mask >> lane & 1) != 0;
        lanes[mask][lane] = static_cast<std::int8_t>(set ? below : below - 128);
        below += set;
      }
    }
  }
};
inline constexpr ExpandTable kExpandTable;

}  // namespace kf::cpu
