// From token ids to hidden states, and from logits to token ids.
#pragma once

#include "kf/ops/common.h"

namespace kf {

// out[t] = scale * table[ids[t]], computed in f32 and rounded once. With an f32 table of hidden states it selects rows.
// Gemma's scale is the root of the hidden size.
struct EmbeddingParams {
  static constexpr Op kOp = Op::embedding;
  TensorView ids;    // i32 [num_tokens]
  TensorView table;  // [vocab, hidden]: f32, f16, bf16 or a block format
  TensorView out;    // [num_tokens, hidden]; inferred: dtype of the table, f32 for a block format
  float scale = 1.0f;

  void visit(FieldVisitor& v) {
    v.table("ids", ids);
    v.weight("table", table);
    v.out("out", out);
    v.attr("scale", scale);
  }
};

// ids[t] = the lowest index of the largest logit; a NaN counts as largest (as torch.argmax).
struct ArgmaxParams {
  static constexpr Op kOp = Op::argmax;
  TensorView logits;  // [num_tokens, vocab], activation dtype
  TensorView ids;     // i32 [num_tokens]
  TensorView max;     // f32 [num_tokens], optional

  void visit(FieldVisitor& v) {
    v.in("logits", logits);
    v.out("ids", ids);
    v.opt_out("max", max);
  }
};

// Draws a token a row from softmax(logits / temperature), after keeping, in this order, the top_k largest, the
// smallest set with probability >= top_p (Holtzman et al., 2020), and what has at least min_p times the largest
// probability (Nguyen et al., 2024). temperature 0 is greedy, and so is a row whose largest logit
// is NaN or infinite. The draw is a function of (seed, step, row) alone: Philox 4x32-10 (Salmon et al., 2011), the
// same on every machine and thread count.
struct SampleParams {
  static constexpr Op kOp = Op::sample;
  TensorView logits;         // [batch, vocab], activation dtype
  TensorView ids;            // i32 [batch]
  float temperature = 1.0f;  // >= 0
  std::int64_t top_k = 0;    // 0: all
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  std::int64_t seed = 0;
  std::int64_t step = 0;  // position of the draw in the stream of this seed

  void visit(FieldVisitor& v) {
    v.in("logits", logits);
    v.out("ids", ids);
    v.attr("temperature", temperature);
    v.attr("top_k", top_k);
    v.attr("top_p", top_p);
    v.attr("min_p", min_p);
    v.run_attr("seed", seed);
    v.run_attr("step", step);
  }
};

void embedding(const EmbeddingParams& p);
void argmax(const ArgmaxParams& p);
void sample(const SampleParams& p);

}  // namespace kf
