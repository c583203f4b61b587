// Attributes that several ops share.
#pragma once

#include "kf/op.h"

namespace kf {

// Elementwise functions, in f32:
//   silu(x) = x / (1 + exp(-x));  gelu(x) = x/2 (1 + erf(x / sqrt 2));
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)));  relu(x) = max(x, 0), NaN stays NaN.
enum class Activation : std::uint8_t { none, silu, gelu, gelu_tanh, relu };
inline constexpr const char* kActivationNames[] = {"none", "silu", "gelu", "gelu_tanh", "relu"};

enum class NormKind : std::uint8_t { none, rms, layer };
inline constexpr const char* kNormKindNames[] = {"none", "rms", "layer"};

// What the inputs of a linear layer's products, its prologue applied, are rounded to before they meet the weights:
//   none   nothing
//   int8   codes of 8 bits, in a scale a token that is made of its own values (dynamic, symmetric):
//            scale[t] = max_k |y[t, k]| / 127 in f32, 0 below 2^-126
//            c[t, k]  = y[t, k] / scale[t] in f32, to nearest even; 0 where the scale is 0
//            y[t] . w = scale[t] * sum_g weight_scale[g] * sum_(k of g) (q[k] - zero[g]) * c[t, k]
//          with the inner sums in integers, exactly. |y - scale c| <= scale / 2 (2^-119 where the scale is 0), so that
//          a result is off by at most scale / 2 * sum_k |w[k]|, and as rounding errors cancel by some
//          scale / sqrt(12) * |w|: of normal values, 1 % of a result's deviation. A token with a value that is not finite
//          gives NaN throughout. Of gated_ffn the hidden values are rounded likewise.
// It changes results and is therefore asked for by name, never chosen.
enum class InputQuantization : std::uint8_t { none, int8 };
inline constexpr const char* kInputQuantizationNames[] = {"none", "int8"};

// How a paged cache orders a page: HND [num_pages, num_kv_heads, page_size, head_dim],
// NHD [num_pages, page_size, num_kv_heads, head_dim]. Named, never inferred.
enum class KvLayout : std::uint8_t { hnd, nhd };
inline constexpr const char* kKvLayoutNames[] = {"HND", "NHD"};

// What stands before a linear layer and is computed while its input is read. With kind rms or layer:
// x <- norm(x) * (norm_weight_offset + weight) (+ bias, layer only). At most one of norm and activation.
struct Prologue {
  NormKind norm = NormKind::none;
  TensorView norm_weight;  // [in], any activation dtype
  TensorView norm_bias;    // [in], optional, layer only
  float eps = 1e-5f;
  float norm_weight_offset = 0.0f;           // rms only: 1 for Gemma, whose weights are stored less one
  Activation activation = Activation::none;  // x <- act(x): the specification's gelu_linear, silu_linear

  bool empty() const { return norm == NormKind::none && activation == Activation::none; }
  void visit(FieldVisitor& v) {
    v.choice("norm", norm, kNormKindNames);
    v.opt_weight("norm_weight", norm_weight);
    v.opt_in("norm_bias", norm_bias);
    v.attr("eps", eps);
    v.attr("norm_weight_offset", norm_weight_offset);
    v.choice("pre_activation", activation, kActivationNames);
  }
};

}  // namespace kf
