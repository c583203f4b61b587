// What the attention kernels are given: args.cpp fills it in from the op's parameters. All strides count elements.
#pragma once

#include <cstdint>

#include "backends/cuda/runtime.h"
#include "kf/ops/attention.h"

namespace kf::cuda::attention {

// Rows (token, head) of q, out, lse or the mask. Of a dense batch sequence b begins at b * outer_stride, of a packed or paged
// one at its first token.
struct Rows {
  void* data;
  DType dtype;
  std::int64_t outer_stride, token_stride, head_stride;
};

// Scales or zeros of keys or values; data null: none.
struct KeyScales {
  const void* data;
  DType dtype;
  std::int64_t outer_stride, token_stride, head_stride, group_stride;
};

// Keys or values. outer_stride: of sequences of a dense batch, of pages.
struct Keys {
  const void* data;
  DType dtype;
  std::int64_t outer_stride, token_stride, head_stride;
  KeyScales scales, zeros;
  int group_size;
};

// Row windows larger than this are unbounded; lengths are below.
inline constexpr int kUnbounded = 1 << 30;

struct Args {
  Rows q, out, lse, mask;  // lse and mask may have no data
  Keys k, v;

  // Where the sequences lie.
  bool dense;
  const std::int32_t *cu_seqlens_q, *cu_seqlens_k, *block_tables, *context_lens;
  std::int64_t table_stride;
  int max_pages, page_size, page_shift;  // page_shift: log2 of page_size, or -1
  int num_pages;
  int batch, seqlen_q, seqlen_k;  // the last two of a dense batch
  int total_q, total_k;           // of a packed one

  int num_heads, num_kv_heads, group, head_dim, value_dim;
  std::uint32_t group_factor,
      group_shift;  // n / group is n * group_factor >> 31 + group_shift, for n below 2^31
  float scale, softcap;
  int window_left, window_right;
  const float* slopes;
  std::int64_t slopes_batch_stride, slopes_head_stride;
  const float* sinks;
  std::int64_t sinks_stride;

  // Keys are shared out to about so many blocks; 0: none is cut. What the parts of cut ones give lies in `partial`: for each block
  // its rows' outputs [rows, value_dim], then, after all, their log-sum-exps (base 2) [rows].
  int target_blocks;
  int cluster_blocks;  // of a unit, which shares its keys out among them; 0: as target_blocks says
  bool wide_blocks;    // such a block is WideDecodeShape's
  float *partial, *partial_lse;

  TableFault* fault;
};

Args args_of(const AttentionParams& p);

}  // namespace kf::cuda::attention
