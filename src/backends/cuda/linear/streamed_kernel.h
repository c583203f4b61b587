// What the kernel for up to 16 tokens on matrix units is given; streamed.cpp plans it, streamed_*.cu run it, one file an element type
// and kind of weights.
#pragma once

#include "backends/cuda/linear/dequant_gemv_kernel.h"

namespace kf::cuda::streamed {

using gemv::Args;
using gemv::Part;

constexpr int kMostTokens = 16;
constexpr int kGroupRows = 16;      // rows of the weight that a warp multiplies at a time
constexpr int kPartialStride = 20;  // floats, a token's of a group

// How weights of a format come to a block.
struct Cut {
  int warps;       // of a block
  int step;        // inputs that a warp takes at a time
  int row_bytes;   // of a row for a step
  int row_stride;  // from row to row in shared memory, so that lanes read different banks
  int ring_steps;  // that a warp has asked for
  constexpr int step_bytes() const { return kGroupRows * row_stride; }
};
constexpr Cut kPlainCut{8, 64, 128, 128, 4};  // of x's dtype, each lane's where it alone reads them
// Of codes: chunks of 32 elements, so many that a row's are a multiple of 16 bytes, or one block. No step: a format that is not
// streamed.
constexpr Cut coded_cut(DType dtype) {
  const auto chunks = [](int count, int bytes, int beyond) {
    return Cut{16, 32 * count, count * bytes, count * bytes + beyond, 3};
  };
  switch (dtype) {
    case DType::int4:
      return chunks(8, 16, 16);
    case DType::i8:
    case DType::fp8_e4m3:
    case DType::fp8_e5m2:
      return chunks(4, 32, 32);
    case DType::q4_0:
      return chunks(8, 18, 0);
    case DType::q4_1:
      return chunks(8, 20, 0);
    case DType::q5_0:
      return chunks(8, 22, 0);
    case DType::q8_0:
      return Cut{16, 256, 272, 272, 2};  // as many as fit
    case DType::q4_k:
      return chunks(8, 18, 0);
    case DType::q6_k:
      return Cut{16, 256, 210, 240, 2};  // wherever it begins in a chunk of 16 bytes
    default:
      return {};
  }
}

// How a layer is shared out.
struct Shape {
  int tokens;  // 8 or 16
  int blocks;  // of a cluster; each has `slice` of the inputs
  int slice;   // a multiple of a step
  int splits;  // warps of a block that share its slice of a group's rows
  int clusters;
};

constexpr int padded_tokens(std::int64_t tokens) {
  int n = 8;
  while (n < tokens) n *= 2;
  return n;
}

// Rows of inputs lie 64 bytes beyond a multiple of 128, so that two of them are in different banks.
constexpr int input_stride(int slice) { return slice + 32; }
constexpr std::size_t shared_bytes(const Cut& cut, int tokens, int slice) {
  const auto warps = static_cast<std::size_t>(cut.warps);
  const std::size_t inputs =
      static_cast<std::size_t>(tokens) * static_cast<std::size_t>(input_stride(slice)) * 2;
  const std::size_t rings = warps * static_cast<std::size_t>(cut.ring_steps * cut.step_bytes());
  const std::size_t partials = warps * static_cast<std::size_t>(tokens) * kPartialStride * sizeof(float);
  return inputs + rings + partials;
}

// Groups of rows of a layer, `gated`: of both weights.
constexpr int groups_of(int rows, bool gated) {
  const int own = gated ? kGroupRows / 2 : kGroupRows;
  return (rows + own - 1) / own;
}

// For the element type of x and outputs; and how many clusters run at once. `plain`: weights of that type, too.
#define KF_STREAMED(type)                                                                               \
  void launch_plain_##type(const Args& a, const Shape& s, const TensorView& on, const RunContext& ctx); \
  int clusters_plain_##type(bool gated, const Shape& s);                                                \
  void launch_scaled_##type(const dequant::Args& a, const Shape& s, const TensorView& on,               \
                            const RunContext& ctx);                                                     \
  int clusters_scaled_##type(DType weight, bool gated, const Shape& s);                                 \
  void launch_blocks_##type(const dequant::Args& a, const Shape& s, const TensorView& on,               \
                            const RunContext& ctx);                                                     \
  int clusters_blocks_##type(DType weight, bool gated, const Shape& s);
KF_STREAMED(f16)
KF_STREAMED(bf16)
#undef KF_STREAMED

// Weights of codes: whether the kernel takes them, `group` columns of which share a scale; how it shares out so many groups of rows;
// and a launch, where rows of the weights and of x can be read 16 bytes at a time.
bool takes_coded(const TensorView& x, const TensorView& weight, int group, const PlanContext& ctx);
Shape shape_for_coded(const TensorView& x, std::int64_t groups, bool gated, DType weight);
void launch_coded(const dequant::Args& a, const Shape& s, const TensorView& on, const RunContext& ctx);

}  // namespace kf::cuda::streamed
