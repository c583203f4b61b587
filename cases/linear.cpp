// Linear layers of every dtype: what stands around them, strides, hostile values, few tokens, and the sizes that are timed.
#include "linear_cases.h"

namespace kf::cases {
namespace linear {
namespace {

// Every dtype with every number of tokens; neither features nor the reduction are a multiple of a vector, and
// the reduction is longer than one block where 640 or 290.
void add_dtypes_and_sizes(CaseList& list) {
  for (const DType x : kActivationDTypes)
    for (const DType w : kWeightDTypes) {
      const std::int64_t in = dtype_info(w).is_block ? whole_blocks({w}, 96) : 75;
      for (const std::int64_t num_tokens : {0, 1, 2, 3, 7, 17, 64, 129})
        add_linear(list, x, w, {num_tokens, in, 97});
      add_linear(list, x, w, {19, dtype_info(w).is_block ? whole_blocks({w}, 640) : 290, 45});
      add_linear(list, x, w, {5, in, 1});
      add_linear(list, x, w, {5, in, 0});
    }
  add_linear(list, DType::f32, DType::f32, {9, 1, 33});
  add_linear(list, DType::f32, DType::f32, {9, 0, 33}, {.bias = true});
  add_linear(list, DType::f32, DType::f32, {700, 40, 20});  // more than one pass
}

void add_surroundings(CaseList& list) {
  for (const DType x : kActivationDTypes)
    for (const DType w : {x, DType::q4_1, DType::q6_k}) {
      for (const std::int64_t num_tokens : {1, 3, 37}) {
        const Shape s{num_tokens, whole_blocks({w}, 320), 71};
        add_linear(list, x, w, s, {.bias = true});
        add_linear(list, x, w, s, {.norm = NormKind::rms});
        if (x == w)
          add_linear(list, x, w, s, {.norm = NormKind::rms, .residual = true, .norm_weight_offset = 1});
        add_linear(list, x, w, s, {.norm = NormKind::layer, .bias = true});
        add_linear(list, x, w, s, {.residual = true});
        add_linear(list, x, w, s,
                   {.norm = NormKind::rms, .bias = true, .after = Activation::silu, .residual = true});
        for (const Activation a : kActivations) {
          add_linear(list, x, w, s, {.before = a});
          add_linear(list, x, w, s, {.bias = true, .after = a});
        }
      }
    }
}

void add_composites(CaseList& list) {
  for (const DType x : kActivationDTypes) {
    for (const std::int64_t num_tokens : {0, 1, 3, 65}) {
      add_qkv(list, x, {x, x, x}, num_tokens, 75, {54, 27, 27}, NormKind::rms, true);
      add_qkv(list, x, {DType::q4_1, DType::q4_0, DType::q8_0}, num_tokens, 96, {96, 32, 33}, NormKind::rms,
              false);
      add_qkv(list, x, {x, DType::q8_0, x}, num_tokens, 320, {64, 16, 16}, NormKind::layer, false);
      for (const Activation a : kActivations)
        add_ffn(list, x, x, {num_tokens, 75, 133}, NormKind::rms, a, true);
      add_ffn(list, x, DType::q4_1, {num_tokens, 96, 320}, NormKind::none, Activation::silu, false);
      add_ffn(list, x, DType::q8_0, {num_tokens, 320, 96}, NormKind::layer, Activation::gelu, true);
      add_ffn(list, x, DType::q4_0, {num_tokens, 64, 64}, NormKind::rms, Activation::silu, true);
      add_ffn(list, x, DType::q4_k, {num_tokens, 256, 512}, NormKind::rms, Activation::silu, true);
      add_qkv(list, x, {DType::q4_k, DType::q4_k, DType::q6_k}, num_tokens, 512, {96, 32, 33}, NormKind::rms,
              false);
      for (const DType w : kWeightDTypes)
        add_argmax(list, x, w, {num_tokens, whole_blocks({w}, 128), 203}, NormKind::rms);
      add_argmax(list, x, x, {num_tokens, 33, 1}, NormKind::none);
    }
  }
}

// Rows of x, residual and results further apart than they are long; weights as columns of x @ W, and with
// both strides.
void add_strides(CaseList& list) {
  for (const DType dtype : kActivationDTypes)
    for (const std::int64_t num_tokens : {1, 3, 23}) {
      const std::int64_t in = 75, out = 53;
      const auto add = [&](const char* what, auto arrange) {
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(dtype, {num_tokens, in});
          p.weight = weight(m, dtype, out, in);
          arrange(m, p);
          return p;
        };
        list.push_back({fmt::format("linear/{}/{}/{}", dtype_name(dtype), what, num_tokens),
                        Op::linear,
                        make,
                        tolerance(dtype, {in}, 2),
                        false,
                        {}});
      };
      add("strided_rows", [=](Maker& m, LinearParams& p) {
        p.x = m.strided(p.x, 5);
        p.weight = m.strided(p.weight, 3);
        p.residual = m.strided(m.normal(dtype, {num_tokens, out}), 7);
        p.out = m.strided(m.filled(dtype, {num_tokens, out}, 0), 9);
      });
      add("in_out_weight", [=](Maker& m, LinearParams& p) {
        p.weight = m.normal(dtype, {in, out}, weight_deviation(in)).transpose(0, 1);
      });
      add("in_out_weight_strided", [=](Maker& m, LinearParams& p) {
        p.weight = m.strided(m.normal(dtype, {in, out}, weight_deviation(in)), 11).transpose(0, 1);
        p.bias = m.normal(DType::f32, {out});
      });
      add("every_other_column", [=](Maker& m, LinearParams& p) {
        p.weight = m.normal(dtype, {out, 2 * in}, weight_deviation(in));
        p.weight.shape[1] = in;
        p.weight.strides[1] = 2;
      });
    }
}

// Infinities, NaN, the largest f16 and denormals, each in a row of its own and together.
void add_hostile_values(CaseList& list) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const DType x : kActivationDTypes)
    for (const DType w : {x, DType::q4_0, DType::q4_1, DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k})
      for (const std::int64_t num_tokens : {8, 20}) {
        const std::int64_t in = whole_blocks({w}, 320), out = 40;
        const auto make = [=](Maker& m) {
          LinearParams p;
          p.x = m.normal(x, {num_tokens, in});
          p.weight = weight(m, w, out, in);
          set_element(p.x, 0 * in + 7, kInf);
          set_element(p.x, 1 * in + 300, -kInf);
          set_element(p.x, 2 * in + 0, kNan);
          set_element(p.x, 3 * in + 5, kInf);
          set_element(p.x, 3 * in + 250, -kInf);
          for (std::int64_t k = 0; k < in; ++k)
            set_element(p.x, 4 * in + k, 1e-7 * static_cast<double>(k % 5));
          return p;
        };
        list.push_back({fmt::format("linear/{}/{}/hostile/{}", dtype_name(x), dtype_name(w), num_tokens),
                        Op::linear,
                        make,
                        tolerance(x, {in}, 0),
                        false,
                        {}});
      }
  for (const DType x : kActivationDTypes)
    for (const std::int64_t num_tokens : {2, 20}) {
      // The largest f16 through a weight that brings it down again; f16 weights that are denormals.
      const auto make = [=](Maker& m) {
        LinearParams p;
        p.x = m.filled(x, {num_tokens, 64}, 65504.0f);
        p.weight = m.normal(DType::f16, {33, 64}, 1e-6f);
        return p;
      };
      Tolerance t = tolerance(x, {64}, 0);  // deviation 65504 * 1e-6 * 8, and the sum of magnitudes likewise
      list.push_back({fmt::format("linear/{}/f16/denormal_weights/{}", dtype_name(x), num_tokens),
                      Op::linear,
                      make,
                      t,
                      false,
                      {}});
      // Equal logits: the lowest index; a NaN: before all.
      const auto make_ties = [=](Maker& m) {
        LmHeadArgmaxParams p;
        p.x = m.filled(x, {num_tokens, 32}, 1.0f);
        p.weight = m.filled(DType::f32, {200, 32}, 0.25f);
        for (std::int64_t n = 0; n < 200; ++n)
          if (n % 37 == 36) set_element(p.weight, n * 32, 2.0);
        set_element(p.x, 1 * 32 + 3, kNan);
        for (std::int64_t k = 0; k < 32; ++k) set_element(p.x, k, 0.0);
        return p;
      };
      list.push_back({fmt::format("lm_head_argmax/{}/ties/{}", dtype_name(x), num_tokens),
                      Op::lm_head_argmax,
                      make_ties,
                      {},
                      false,
                      {"max"}});
    }
}

// SmolLM2-135M's layers, and those of a model of 4096.
void add_benchmarks(CaseList& list) {
  constexpr DType kBenchWeights[] = {DType::f32, DType::bf16, DType::q4_1, DType::q8_0};
  for (const DType w : kBenchWeights) {
    for (const std::int64_t num_tokens : {128, 512, 2048}) {
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 1536, 576}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {.residual = true}, true);
      add_qkv(list, DType::f32, {w, w, w}, num_tokens, 576, {576, 192, 192}, NormKind::rms, false, true);
      add_ffn(list, DType::f32, w, {num_tokens, 576, 1536}, NormKind::rms, Activation::silu, true, true);
    }
    add_argmax(list, DType::f32, w, {128, 576, 49152}, NormKind::rms, true);
  }
  for (const DType w :
       {DType::f32, DType::bf16, DType::q4_1, DType::q5_0, DType::q8_0, DType::q4_k, DType::q6_k}) {
    for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
      add_linear(list, DType::f32, w, {num_tokens, 4096, 4096}, {}, true);
      add_linear(list, DType::f32, w, {num_tokens, 4096, 14336}, {}, true);
    }
    add_linear(list, DType::f32, w, {512, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  }
}

// Decoding: weights large enough that threads share them, an odd number of blocks, rows that are slices of
// longer ones, an element too large for arithmetic on undecoded nibbles; and SmolLM2-135M's layers for a few
// sequences.
void add_few_tokens(CaseList& list) {
  for (const DType w : kWeightDTypes)
    for (const std::int64_t num_tokens : {1, 2, 3, 4, 5, 8, 15, 16}) {
      const std::int64_t in = whole_blocks({w}, 288), block = std::max(dtype_info(w).block_elems, 32);
      add_linear(list, DType::f32, w, {num_tokens, whole_blocks({w}, 608), 203},
                 {.norm = NormKind::rms, .residual = true});
      add_ffn(list, DType::f32, w, {num_tokens, in, whole_blocks({w}, 416)}, NormKind::rms, Activation::silu,
              true);
      add_qkv(list, DType::f32, {w, DType::q8_0, DType::q4_1}, num_tokens, in, {192, 96, 97}, NormKind::rms,
              true);
      add_argmax(list, DType::f32, w, {num_tokens, in, 1009}, NormKind::rms);
      const auto make = [=](Maker& m) {
        LinearParams p;
        p.x = m.normal(DType::f32, {num_tokens, in});
        set_element(p.x, 100, 1e32);
        p.weight = weight(m, w, 203, in + 2 * block).slice(1, block, in + block);
        return p;
      };
      const Tolerance t = tolerance(DType::f32, {in}, 0);
      list.push_back({fmt::format("linear/f32/{}/sliced_rows/{}", dtype_name(w), num_tokens),
                      Op::linear,
                      make,
                      {t.rtol, t.atol},
                      false,
                      {}});
      const auto make_large = [=](Maker& m) {
        LinearParams p;
        p.x = m.filled(DType::f32, {num_tokens, whole_blocks({w}, 64)}, 0.0f);
        set_element(p.x, 40, 1e38);
        p.weight = weight(m, w, 33, whole_blocks({w}, 64));
        return p;
      };
      list.push_back({fmt::format("linear/f32/{}/large_element/{}", dtype_name(w), num_tokens),
                      Op::linear,
                      make_large,
                      {1e-5, 1e32},
                      false,
                      {}});
    }
  for (const DType w : {DType::f32, DType::bf16, DType::q4_1, DType::q8_0})
    for (const std::int64_t num_tokens : {1, 2, 4, 8, 16}) {
      add_linear(list, DType::f32, w, {num_tokens, 576, 576}, {.residual = true}, true);
      add_qkv(list, DType::f32, {w, w, w}, num_tokens, 576, {576, 192, 192}, NormKind::rms, false, true);
      add_ffn(list, DType::f32, w, {num_tokens, 576, 1536}, NormKind::rms, Activation::silu, true, true);
      add_argmax(list, DType::f32, w, {num_tokens, 576, 49152}, NormKind::rms, true);
    }
}

// Up to 16 tokens by weights in rows of whole 16 bytes, as matrix units want them: neither features nor the reduction are a
// multiple of a tile, and some reductions are longer than the tokens' part of a shared memory.
void add_up_to_16_tokens(CaseList& list) {
  for (const DType x : {DType::f16, DType::bf16})
    for (const std::int64_t num_tokens : {2, 8, 13, 16}) {
      const Activation after = num_tokens % 2 ? Activation::gelu : Activation::silu;
      for (const std::int64_t in : {328, num_tokens <= 8 ? 19208 : 4008})
        for (const NormKind norm : {NormKind::none, NormKind::rms, NormKind::layer})
          add_linear(list, x, x, {num_tokens, in, 29},
                     {.norm = norm, .bias = true, .after = after, .residual = true});
      add_linear(list, x, x, {num_tokens, 72, 1}, {.before = Activation::silu});
      add_qkv(list, x, {x, x, x}, num_tokens, 328, {56, 17, 16}, NormKind::rms, true);
      for (const std::int64_t in : {4008, 19208})
        if (in == 4008 || num_tokens <= 8)
          add_qkv(list, x, {x, x, x}, num_tokens, in, {40, 24, 1}, NormKind::layer, false);
      add_ffn(list, x, x, {num_tokens, 264, 520}, NormKind::rms, after, true);
      add_ffn(list, x, x, {num_tokens, 40, 4008}, NormKind::layer, Activation::gelu_tanh, false);
      add_argmax(list, x, x, {num_tokens, 264, 1009}, NormKind::rms);
      // Rows of blocks of 210 bytes.
      const WeightFormat q6_k = DType::q6_k;
      for (const std::int64_t in : {2048, 6144})
        add_linear(list, x, q6_k, {num_tokens, in, 29},
                   {.norm = NormKind::rms, .bias = true, .after = after, .residual = true});
      add_qkv(list, x, {q6_k, q6_k, q6_k}, num_tokens, 2048, {24, 17, 1}, NormKind::layer, true);
      add_argmax(list, x, q6_k, {num_tokens, 2048, 509}, NormKind::rms);
      if (num_tokens == 13) add_ffn(list, x, q6_k, {num_tokens, 2048, 2048}, NormKind::rms, after, true);
    }
}

}  // namespace
}  // namespace linear

void add_linear_cases(CaseList& list) {
  using namespace linear;
  add_dtypes_and_sizes(list);
  add_surroundings(list);
  add_composites(list);
  add_strides(list);
  add_hostile_values(list);
  add_few_tokens(list);
  add_up_to_16_tokens(list);
  add_scaled_weights(list);
  add_sparse_weights(list);
  add_adapters(list);
  add_int8_inputs(list);
  add_benchmarks(list);
}

void add_linear_device_cases(CaseList& list) {
  using namespace linear;
  const WeightFormat w = DType::bf16;
  for (const std::int64_t num_tokens : {1, 2, 4, 16, 64}) {
    add_linear(list, DType::bf16, w, {num_tokens, 4096, 4096}, {}, true);
    add_linear(list, DType::bf16, w, {num_tokens, 4096, 14336}, {}, true);
  }
  add_linear(list, DType::bf16, w, {1, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  add_linear(list, DType::bf16, w, {1024, 4096, 4096}, {}, true);
  add_linear(list, DType::bf16, w, {1024, 4096, 4096}, {.norm = NormKind::rms, .residual = true}, true);
  for (const std::int64_t num_tokens : {1, 16, 64}) {
    add_linear(list, DType::bf16, w, {num_tokens, 2048, 2048}, {.residual = true}, true);
    add_qkv(list, DType::bf16, {w, w, w}, num_tokens, 4096, {4096, 1024, 1024}, NormKind::rms, false, true);
    add_qkv(list, DType::bf16, {w, w, w}, num_tokens, 2048, {2048, 512, 512}, NormKind::rms, false, true);
  }
  for (const std::int64_t num_tokens : {1, 2, 4, 16, 64, 1024}) {
    add_ffn(list, DType::bf16, w, {num_tokens, 4096, 14336}, NormKind::rms, Activation::silu, true, true);
    add_ffn(list, DType::bf16, w, {num_tokens, 2048, 8192}, NormKind::rms, Activation::silu, true, true);
  }
  for (const Around& a :
       {Around{}, {.norm = NormKind::layer}, {.norm = NormKind::rms}, {.before = Activation::gelu}})
    add_linear(list, DType::bf16, w, {4096, 4096, 4096}, a, true);
  for (const std::int64_t num_tokens : {64, 256, 1024, 4096}) {
    if (num_tokens != 64) add_linear(list, DType::bf16, w, {num_tokens, 4096, 14336}, {}, true);
    add_linear(list, DType::bf16, WeightFormat(DType::bf16).n_of_m(2, 4), {num_tokens, 4096, 14336}, {},
               true);
  }
  const WeightFormat int4{DType::int4, 128, DType::f16}, q4_k = DType::q4_k;
  for (const WeightFormat& low :
       {q4_k, WeightFormat(DType::q6_k), WeightFormat(DType::q4_0), WeightFormat(DType::q8_0), int4,
        WeightFormat(DType::i8, 0, DType::f32), WeightFormat(DType::fp8_e4m3, 0, DType::f32)})
    for (const std::int64_t num_tokens : {1, 4, 16})
      add_linear(list, DType::bf16, low, {num_tokens, 4096, 14336}, {}, true);
  for (const WeightFormat& low : {q4_k, int4}) {
    add_linear(list, DType::bf16, low, {256, 4096, 14336}, {}, true);
    add_ffn(list, DType::bf16, low, {1, 4096, 14336}, NormKind::rms, Activation::silu, true, true);
  }
  for (const std::int64_t num_tokens : {1, 4, 16})
    add_argmax(list, DType::bf16, w, {num_tokens, 2048, 128256}, NormKind::rms, true);
}

}  // namespace kf::cases
