// What cases cannot say of the linear family: results in place of the residual, and independence of the
// threads.

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "case.h"
#include "kf/dispatch.h"
#include "kf/ops/linear.h"

namespace kf {
namespace {

using cases::Maker;

std::vector<unsigned char> bytes_of(const TensorView& t) {
  const auto* const p = t.as<unsigned char>();
  return {p, p + t.nbytes()};
}

// x + linear(norm(x)) and x + ffn(norm(x)), written over the residual; more tokens than one pass takes.
TEST(LinearInPlace, ResidualStream) {
  for (const std::int64_t num_tokens : {1, 5, 1200}) {
    Maker m("residual_stream");
    const TensorView x = m.normal(DType::f32, {num_tokens, 40});
    const TensorView copy = m.strided(x, 0);
    const TensorView apart = m.filled(DType::f32, {num_tokens, 40}, 0.0f);
    const TensorView square = m.normal(DType::f32, {40, 40}, 0.2f);
    const TensorView up = m.normal(DType::f32, {56, 40}, 0.2f), down = m.normal(DType::f32, {40, 56}, 0.2f);
    const Prologue norm{.norm = NormKind::rms, .norm_weight = m.filled(DType::f32, {40}, 1.0f)};
    Dispatcher d(backend_by_name("cpu"));

    LinearParams layer{.x = x, .weight = square, .residual = x, .out = apart, .prologue = norm};
    d.run(layer);
    layer.residual = layer.out = copy;
    d.run(layer);
    EXPECT_EQ(bytes_of(copy), bytes_of(apart)) << "linear, " << num_tokens << " tokens";

    GatedFfnParams ffn{
        .x = x, .gate_weight = up, .up_weight = up, .down_weight = down, .residual = x, .out = apart};
    ffn.prologue = norm;
    d.run(ffn);
    std::memcpy(copy.data, x.data, x.nbytes());
    ffn.residual = ffn.out = copy;
    d.run(ffn);
    EXPECT_EQ(bytes_of(copy), bytes_of(apart)) << "gated_ffn, " << num_tokens << " tokens";
  }
}

// Our own kernels give the same bits whatever the number of threads.
TEST(LinearThreads, SameBits) {
  for (const std::int64_t num_tokens : {1, 3, 50, 700}) {
    Maker m("threads");
    const TensorView x = m.normal(DType::f32, {num_tokens, 640});
    const TensorView up = m.normal(DType::q4_1, {320, 640}, 0.05f),
                     gate = m.normal(DType::f32, {320, 640}, 0.05f);
    const TensorView down = m.normal(DType::bf16, {640, 320}, 0.05f);
    // Hidden features that several threads bring into the order of nibbles, the last of them less than a unit.
    const TensorView down4 = m.normal(DType::q4_1, {640, 320}, 0.05f);
    const TensorView norm = m.filled(DType::f32, {640}, 1.0f);
    std::vector<unsigned char> linear_bytes, ffn_bytes, ffn4_bytes, ids_bytes;
    for (const int threads : {1, 2, 5}) {
      Dispatcher d(backend_by_name("cpu"), {.num_threads = threads});
      LinearParams layer{.x = x, .weight = up, .out = m.filled(DType::f32, {num_tokens, 320}, 0.0f)};
      layer.prologue = {.norm = NormKind::rms, .norm_weight = norm};
      d.run(layer);
      GatedFfnParams ffn{.x = x, .gate_weight = gate, .up_weight = up, .down_weight = down};
      ffn.out = m.filled(DType::f32, {num_tokens, 640}, 0.0f);
      d.run(ffn);
      GatedFfnParams ffn4 = ffn;
      ffn4.down_weight = down4;
      ffn4.out = m.filled(DType::f32, {num_tokens, 640}, 0.0f);
      d.run(ffn4);
      LmHeadArgmaxParams head{.x = x, .weight = gate};
      head.ids = m.integers(DType::i32, std::vector<std::int64_t>(static_cast<std::size_t>(num_tokens), -1));
      d.run(head);
      if (threads == 1) {
        linear_bytes = bytes_of(layer.out);
        ffn_bytes = bytes_of(ffn.out);
        ffn4_bytes = bytes_of(ffn4.out);
        ids_bytes = bytes_of(head.ids);
      }
      EXPECT_EQ(bytes_of(layer.out), linear_bytes) << threads << " threads, " << num_tokens << " tokens";
      EXPECT_EQ(bytes_of(ffn4.out), ffn4_bytes) << threads << " threads, " << num_tokens << " tokens";
      EXPECT_EQ(bytes_of(ffn.out), ffn_bytes) << threads << " threads, " << num_tokens << " tokens";
      EXPECT_EQ(bytes_of(head.ids), ids_bytes) << threads << " threads, " << num_tokens << " tokens";
    }
  }
}

}  // namespace
}  // namespace kf
