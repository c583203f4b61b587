// The keys that the rows of a query block may attend, read off a block layout: the reference, the unfused mask and the fused
// kernels all walk it through this.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/sequences.h"

namespace kf::ops {

// Query block of a token, and how many tokens a block has where a sequence has `tokens`.
inline std::int64_t query_block(const SparseKeys& s, std::int64_t token) {
  return s.block_size_q > 0 ? token / s.block_size_q : 0;
}
inline std::int64_t query_block_tokens(const SparseKeys& s, std::int64_t tokens) {
  return s.block_layout.present() && s.block_size_q > 0 ? s.block_size_q : tokens;
}

class KeyBlocks {
 public:
  // All keys.
  KeyBlocks() = default;
  // Those of one query block under one of `num_heads` query heads; all keys without a layout.
  KeyBlocks(const SparseKeys& s, std::int64_t sequence, std::int64_t block, std::int64_t head,
            std::int64_t num_heads) {
    const TensorView& t = s.block_layout;
    if (!t.present()) return;
    const auto stride = [&](int axis) { return t.dim(axis) == 1 ? 0 : t.stride(axis); };
    const std::int64_t at =
        sequence * stride(0) + head / (num_heads / t.dim(1)) * stride(1) + block * t.stride(2);
    size_ = s.block_size_k;
    columns_ = t.dim(3);
    if (t.dtype == DType::boolean)
      bits_ = t.as<std::uint8_t>() + at;
    else
      list_ = t.as<std::int32_t>() + at;
  }

  // The first run of neighbouring keys of `keys` that may be attended; empty and at their end where there is none.
  KeyRange next_run(KeyRange keys) const {
    if (size_ == 0 || keys.begin >= keys.end) return {std::min(keys.begin, keys.end), keys.end};
    const std::int64_t end = (keys.end - 1) / size_ + 1;
    const KeyRange blocks =
        bits_ ? run_of_bits(keys.begin / size_, end) : run_of_list(keys.begin / size_, end);
    if (blocks.begin == blocks.end) return {keys.end, keys.end};
    return {std::max(keys.begin, blocks.begin * size_),
            blocks.end == end ? keys.end : std::min(blocks.end * size_, keys.end)};
  }
  // Calls f(run) for all of them.
  template <class F>
  void for_each_run(KeyRange keys, const F& f) const {
    for (KeyRange run = next_run(keys); run.begin < run.end; run = next_run({run.end, keys.end})) f(run);
  }
  std::int64_t count(KeyRange keys) const {
    std::int64_t n = 0;
    for_each_run(keys, [&](KeyRange run) { n += run.end - run.begin; });
    return n;
  }
  // The key after the first `n` that may be attended; the end where no more than these may.
  std::int64_t after(KeyRange keys, std::int64_t n) const {
    for (KeyRange run = next_run(keys); run.begin < run.end; run = next_run({run.end, keys.end})) {
      if (run.end - run.begin > n) return run.begin + n;
      n -= run.end - run.begin;
      if (n == 0) return next_run({run.end, keys.end}).begin;
    }
    return keys.end;
  }

 private:
  KeyRange run_of_bits(std::int64_t begin, std::int64_t end) const {
    end = std::min(end, columns_);
    while (begin < end && !bits_[begin]) ++begin;
    std::int64_t last = begin;
    while (last < end && bits_[last]) ++last;
    return {begin, last};
  }
  KeyRange run_of_list(std::int64_t begin, std::int64_t end) const {
    const std::int32_t *const stop = list_ + columns_,
                              *at = std::partition_point(list_, stop, [&](std::int32_t block) {
                                return block >= 0 && block < begin;
                              });
    if (at == stop || *at < 0 || *at >= end) return {end, end};
    const std::int64_t first = *at;
    std::int64_t last = first;
    while (at < stop && *at == last && last < end) ++at, ++last;
    return {first, last};
  }

  std::int64_t size_ = 0, columns_ = 0;  // keys of a block; 0: no layout
  const std::uint8_t* bits_ = nullptr;
  const std::int32_t* list_ = nullptr;
};

}  // namespace kf::ops
