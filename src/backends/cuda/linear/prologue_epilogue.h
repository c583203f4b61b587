// How the kernels for few tokens are given what stands around their products.
#pragma once

#include <algorithm>
#include <type_traits>

#include "backends/cuda/linear/gemv_kernel.h"
#include "kf/kernel.h"
#include "kf/ops/linear.h"

namespace kf::cuda::gemv {

// x and the prologue.
Args args_of(const TensorView& x, const Prologue& prologue);
// A weight [out, in] and where its products go; without them, where these are compared alone.
void add_part(Args& a, const TensorView& weight, const TensorView& bias, const TensorView& out);
void set_residual(Args& a, const TensorView& residual);
void set_largest(Args& a, const LmHeadArgmaxParams& p, void* workspace);

// Dense layers. A gated FFN's are two; h is what lies between them.
Args args_of(const LinearParams& p);
Args args_of(const QkvLinearParams& p);
Args args_of(const GatedFfnParams& p, const TensorView& h);
Args down_args_of(const GatedFfnParams& p, const TensorView& h);
Args args_of(const LmHeadArgmaxParams& p, void* workspace);

// What the kernels for few tokens need of a dense weight.
Support supports_weight(const TensorView& x, const TensorView& weight, const Sparsity& sparsity);
// Any number of tokens, by the kernel for few, which takes any addresses.
void launch_by_tokens(const Args& a, const TensorView& x, bool constant_weights, const RunContext& ctx);

// Calls f(args) for up to `most` tokens at a time.
template <class A, class F>
void by_tokens(A a, int most, const F& f) {
  const std::int64_t bytes = dtype_info(a.dtype).block_bytes;
  // The rows of the tokens after these.
  const auto skip = [&](auto*& rows, std::int64_t stride) {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<std::remove_reference_t<decltype(rows)>>>,
                           const char, char>;
    if (rows) rows = static_cast<Byte*>(rows) + most * stride * bytes;
  };
  for (int left = a.num_tokens; left > 0; left -= most) {
    a.num_tokens = std::min(most, left);
    f(a);
    skip(a.x, a.x_stride);
    skip(a.residual, a.residual_stride);
    for (Part& p : a.parts) skip(p.out, p.out_stride);
    LargestOut& out = a.largest.out;
    if (out.ids) out.ids += most * out.ids_stride;
    if (out.max) out.max += most * out.max_stride;
  }
}

// Whether rows of x and what the prologue reads can be read in accesses of 16 bytes.
bool is_wide(const void* data, DType dtype, std::int64_t stride, std::int64_t in);
bool input_is_wide(const Args& a);

// The gated FFN's activated products, between two launches.
TensorView intermediate(const GatedFfnParams& p, std::int64_t features, void* workspace);

}  // namespace kf::cuda::gemv
