// What several kernels ask of their operands. Here, and not beside the kernels, because nvcc does not compile fmt.
#pragma once

#include "core/rows.h"
#include "kf/kernel.h"

namespace kf::cuda {

// Rows (blocks of a grid) and elements of a row are counted in 31 bits.
Support rows_fit(const TensorView& t);
// Blocks of 256 elements or more, or of one row, are.
Support blocks_fit(const TensorView& t);
// Heads of all tokens, and elements of a head, are.
Support heads_fit(std::int64_t num_tokens, std::int64_t num_heads, std::int64_t head_dim);
// f32, f16 or bf16.
Support plain_dtype(const char* name, const TensorView& t);

// Whether a block may have so much shared memory.
Support shared_fits(std::size_t bytes, const DeviceCaps& caps);

// Whether blocks may be launched in clusters: on sm_90 and newer, by kernels that are compiled for them.
bool has_clusters(const DeviceCaps& caps);

inline void* data_or_null(const TensorView& t) { return t.present() ? t.data : nullptr; }

}  // namespace kf::cuda
