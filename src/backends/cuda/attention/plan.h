// What the attention kernels' host code has in common: how a batch is cut into blocks, and what is refused.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "backends/cuda/attention/args.h"
#include "backends/cuda/attention/attention.h"
#include "backends/cuda/attention/launches.h"
#include "kf/kernel.h"

namespace kf::cuda::attention {

// Of a launch's tiles.
struct Tiles {
  int rows, blocks_per_sm;
  bool few;  // keys are cut however many units there are: sequences may differ
  std::size_t shared_bytes;
};

inline std::int64_t largest_dim(const AttentionParams& p) { return std::max(p.q.dim(-1), p.v.dim(-1)); }

// Whether a K/V head of a sequence has few rows on average, as in decode.
bool has_few_rows(const Args& a);

// The most units that a batch has, whatever the lengths of its sequences.
std::int64_t max_units(const Args& a, int tile_rows);

std::shared_ptr<State> plan(const AttentionParams& p, const Args& a, const Tiles& t,
                            std::size_t* workspace_bytes);

Args args_for(const AttentionParams& p, const State& s, int tile_rows, const RunContext& ctx);
Grid grid_of(const Args& a, const State& s, int tile_rows);

// What no kernel takes.
Support fits(const AttentionParams& p);

}  // namespace kf::cuda::attention
