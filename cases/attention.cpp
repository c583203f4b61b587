// Attention over every form of batch: head shapes, features, hostile values, merging, and the sizes that are timed.
#include "attention_cases.h"

namespace kf::cases {
namespace attention {
namespace {

// `count` heads of a merged [tokens, all heads * head_dim] buffer.
TensorView heads_of(const TensorView& merged, std::int64_t first, std::int64_t count, std::int64_t head_dim) {
  TensorView t = merged.slice(1, first * head_dim, (first + count) * head_dim);
  t.rank = 4;
  t.shape = {1, merged.dim(0), count, head_dim};
  t.strides = {merged.dim(0) * merged.stride(0), merged.stride(0), head_dim, 1};
  return t;
}

void add_forms(Cases& cases) {
  const Types f32{}, f16{DType::f16, DType::f16}, bf16{DType::bf16, DType::bf16};
  const Types mixed[] = {{DType::f32, DType::f16}, {DType::f32, DType::bf16}, {DType::bf16, DType::f32}};
  std::vector<Batch> batches = {even(2, 33, 33), even(1, 1, 1),     even(1, 1, 307),
                                even(3, 7, 101), even(1, 131, 131), even(1, 113, 271),
                                even(2, 12, 5),  even(1, 3, 0),     even(0, 3, 3)};
  batches.push_back({{0, 5, 1, 37, 100}, {3, 0, 19, 37, 131}, Batch::packed});
  batches.push_back({{}, {}, Batch::packed});
  for (const auto form : {Batch::hnd, Batch::nhd}) {
    batches.push_back({{4, 1}, {0, 0}, form, 5});
    for (const std::int64_t page_size : {1, 5, 16, 64})
      for (const bool shared : {false, true}) {
        batches.push_back({{1, 1, 1, 1}, {1, 0, 300, 67}, form, page_size, shared});
        batches.push_back({{4, 0, 61, 9, 1}, {129, 7, 61, 2, 530}, form, page_size, shared});
      }
  }
  for (const Batch& b : batches) {
    for (const bool causal : {true, false}) cases.attention(b, {6, 2, 64}, f32, causal);
    cases.primitives(b, {6, 2, 64});
    cases.attention(b, {4, 4, 40}, f16);
    cases.attention(b, {8, 1, 32}, bf16);
    for (const Types& types : mixed) cases.attention(b, {8, 2, 64}, types, false);
  }
  for (const Types& types : {f16, bf16, mixed[0], mixed[2]})
    for (const auto form : {Batch::dense, Batch::packed, Batch::hnd, Batch::nhd})
      cases.primitives({{9, 9}, {23, 23}, form}, {6, 2, 32}, types);
}

void add_head_shapes(Cases& cases) {
  for (std::int64_t head_dim = 32; head_dim <= 256; head_dim += 8) {
    cases.attention(even(1, 19, 37), {4, 2, head_dim});
    cases.attention(even(1, 1, 37), {4, 2, head_dim}, {DType::f32, DType::f16});
  }
  cases.attention(even(1, 19, 37), {2, 1, 20});  // only the reference and the unfused form take it
  for (std::int64_t group = 1; group <= 12; ++group) cases.attention(even(1, 1, 290), {2 * group, 2, 64});
  for (const Heads& h :
       {Heads{4, 4, 64}, Heads{9, 3, 64}, Heads{32, 8, 32}, Heads{16, 2, 64}, Heads{20, 1, 64}}) {
    cases.attention(even(1, 67, 67), h);
    cases.attention(even(1, 3, 523), h);
  }
  cases.attention(even(1, 1, 9001), {4, 2, 64});
}

void add_hostile(Cases& cases) {
  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150);
  const auto first_row = [](const TensorView& t, float value) {
    for (std::int64_t i = 0; i < t.dim(-1); ++i) set_element(t, i, value);
  };
  cases.special("merged-qkv", even(1, 50, 50), h, plain, [h](Maker& m, AttentionParams& p) {
    const TensorView merged = m.strided(m.normal(DType::f32, {50, 8 * h.dim}), 7);
    p.q = heads_of(merged, 0, 4, h.dim), p.k = heads_of(merged, 4, 2, h.dim),
    p.v = heads_of(merged, 6, 2, h.dim);
  });
  cases.special("strided-heads", even(2, 1, 150), h, plain, [](Maker& m, AttentionParams& p) {
    p.q = m.strided(p.q, 5), p.k = m.strided(p.k, 3), p.v = m.strided(p.v, 9);
  });
  cases.special("broadcast-keys", even(2, 20, 30), h, plain, [](Maker&, AttentionParams& p) {
    p.k.strides[0] = p.v.strides[0] = 0;  // one K and V for the whole batch
    p.k.strides[2] = 0;
  });
  cases.special("scale", even(1, 9, 150), h, plain,
                [](Maker&, AttentionParams& p) { p.softmax_scale = 0.01f; });
  cases.special("negative-scale", even(1, 9, 150), h, plain,
                [](Maker&, AttentionParams& p) { p.softmax_scale = -0.125f; });
  for (const std::int64_t seqlen_q : {1, 40}) {
    const std::string suffix = fmt::format("/q{}", seqlen_q);
    const Batch b = even(1, seqlen_q, 150);
    cases.special("nan-query" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.q, kNan); });
    cases.special("nan-key" + suffix, b, h, plain, [=](Maker&, AttentionParams& p) { first_row(p.k, kNan); });
    cases.special("infinite-key" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { set_element(p.k, 0, kInfinity); });
    cases.special("nan-value" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.v, kNan); });
    cases.special("infinite-value" + suffix, b, h, plain,
                  [=](Maker&, AttentionParams& p) { first_row(p.v, kInfinity); });
    // All scores alike and large: 65504 * 65504 / 8 * 64 is beyond the range of f16, and exp must not
    // overflow. The softmax is even: what is left is the error of sums of values of 65504, and for lse that
    // of a sum of D like terms.
    Tolerance large = plain;
    large.atol = 65504 * plain.atol;
    large.rtol = kLambda * unit_roundoff(DType::f32) * std::sqrt(static_cast<double>(h.dim));
    cases.special("f16-maximum" + suffix, b, h, large, [](Maker& m, AttentionParams& p) {
      p.q = m.filled(DType::f32, {1, p.q.dim(1), 4, 64}, 65504.0f);
      p.k = m.filled(DType::f16, {1, 150, 2, 64}, 65504.0f);
      p.v = m.filled(DType::f16, {1, 150, 2, 64}, 65504.0f);
    });
    cases.special("denormals" + suffix, b, h, plain, [](Maker& m, AttentionParams& p) {
      p.k = m.uniform(DType::f32, {1, 150, 2, 64}, 0.0f, 1e-39f);
      p.v = m.uniform(DType::f32, {1, 150, 2, 64}, 0.0f, 1e-39f);
    });
  }
}

// Each feature alone and some together, over every form of batch and stage of serving.
void add_features(Cases& cases) {
  const Heads h{6, 2, 64};
  const auto in_form = [](Batch b, Batch::Form form) {
    b.form = form, b.page_size = 5;
    return b;
  };
  // Prefill, chunks of a prefill, decode; packed and paged batches mix them, and have more queries than keys as well.
  const Batch even_batches[] = {even(2, 61, 61), even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(2, 12, 5)};
  const Batch uneven[] = {{{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}}, {{1, 1, 1}, {7, 600, 0}}};
  std::vector<Batch> batches(std::begin(even_batches), std::end(even_batches));
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd})
    for (const Batch& b : uneven) batches.push_back(in_form(b, form));

  std::vector<Features> alone;
  for (const bool causal : {true, false})
    for (const std::int64_t left : {0, 1, 30, 128}) {
      alone.push_back({.causal = causal, .window_left = left, .window_right = causal ? -1 : left / 2});
      if (!causal) alone.push_back({.causal = false, .window_left = left});
    }
  alone.push_back({.causal = false, .window_right = 3});
  for (const bool causal : {true, false}) {
    for (const float softcap : {1.5f, 50.0f}) alone.push_back({.causal = causal, .softcap = softcap});
    alone.push_back({.causal = causal, .alibi = Features::slopes});
    alone.push_back({.causal = causal, .sinks = true});
    alone.push_back({.causal = causal, .mask = DType::boolean, .one_head = true});
    alone.push_back({.causal = causal, .mask = DType::f32});
  }
  alone.push_back({.alibi = Features::slopes_of_batch});
  alone.push_back({.mask = DType::f16, .one_head = true, .expanded = true});
  alone.push_back({.mask = DType::bf16, .one_batch = true, .one_query = true});
  alone.push_back({.mask = DType::boolean, .one_batch = true, .one_head = true, .one_query = true});
  alone.push_back({.mask = DType::boolean, .one_batch = true, .one_query = true, .expanded = true});

  for (const Batch& b : batches) {
    for (const Features& f : alone) {
      if (b.form != Batch::dense && (f.one_batch || f.one_query)) continue;  // dense batches' alone
      cases.featured(b, h, {}, f);
      if (!f.sinks && f.softcap == 0) cases.mask(b, h, f);
    }
    cases.capped_scores(b, h, 1.5f);
    for (const auto& [dim, value_dim] : {std::pair{64, 32}, {40, 128}, {192, 128}, {8, 256}, {256, 8}})
      cases.featured(b, {4, 2, dim, value_dim}, {DType::f32, DType::f16}, {});
  }

  // Decode of many sequences, the longest of which is cut.
  Batch many{std::vector<std::int64_t>(40, 1), {1500}};
  for (std::int64_t i = 1; i < 40; ++i) many.seqlens_k.push_back(i * 7 % 90);
  for (const auto form : {Batch::packed, Batch::nhd})
    for (const Features& f :
         {Features{}, Features{.window_left = 700, .alibi = Features::slopes, .sinks = true}})
      for (const DType dtype : {DType::f16, DType::bf16})
        cases.featured(in_form(many, form), {8, 4, 64}, {dtype, dtype}, f);

  std::mt19937_64 rng(20);
  const auto one_of = [&](auto choices) { return choices[rng() % choices.size()]; };
  const DType plain[] = {DType::f32, DType::f16, DType::bf16};
  for (int i = 0; i < 160; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 2) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 2) f.softcap = one_of(std::array{2.0f, 30.0f});
    if (rng() % 2) f.alibi = rng() % 2 ? Features::slopes : Features::slopes_of_batch;
    if (rng() % 2) f.mask = one_of(std::array{DType::boolean, DType::f32, DType::f16, DType::bf16});
    f.sinks = rng() % 4 == 0;
    const Batch& b = batches[rng() % batches.size()];
    if (f.mask) {
      f.one_head = rng() % 2, f.expanded = rng() % 2;
      if (b.form == Batch::dense) f.one_batch = rng() % 2, f.one_query = rng() % 3 == 0;
    }
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 3, 8}),
                       dim = 8 << rng() % 5;
    const Heads heads{kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5};
    const Types types{plain[rng() % 3], plain[rng() % 3]};
    cases.featured(b, heads, types, f, false, fmt::format("-{}", i));
  }
}

void add_merges(Cases& cases) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    cases.merge("dense", {2, 5, 3, 40}, dtype);
    cases.merge("packed", {37, 4, 64}, dtype);
    cases.merge("one", {1, 1, 1}, dtype);
    cases.merge("none", {0, 4, 16}, dtype);
    cases.merge("strided", {2, 9, 4, 72}, dtype, false, [](Maker& m, MergeAttentionParams& p) {
      p.out_a = m.strided(p.out_a, 5), p.out_b = m.strided(p.out_b, 1);
      p.lse_a = m.strided(p.lse_a, 3), p.lse_b = m.strided(p.lse_b, 2);
    });
    // Parts that attended nothing, with whatever in their outputs; both; and lse beyond the range of exp.
    cases.merge("absent-parts", {6, 2, 24}, dtype, false, [](Maker&, MergeAttentionParams& p) {
      const auto no_part = [](const TensorView& out, const TensorView& lse, std::int64_t token) {
        for (std::int64_t h = 0; h < 2; ++h) {
          set_element(lse, h * 6 + token, -kInfinity);
          for (std::int64_t i = 0; i < 24; ++i) set_element(out, (token * 2 + h) * 24 + i, kNan);
        }
      };
      no_part(p.out_a, p.lse_a, 0), no_part(p.out_b, p.lse_b, 1);
      no_part(p.out_a, p.lse_a, 2), no_part(p.out_b, p.lse_b, 2);
      set_element(p.lse_a, 3, 1000.0), set_element(p.lse_b, 3, 1001.0);
      set_element(p.lse_a, 4, -1000.0), set_element(p.lse_b, 4, 900.0);
      set_element(p.lse_a, 5, kNan);
    });
  }
  cases.merge("packed-512x32x128", {512, 32, 128}, DType::f32, true);
}

// The shapes whose figures the documentation gives, and the forms that serving uses.
void add_bench(Cases& cases) {
  for (const Heads& h : {Heads{9, 3, 64}, Heads{32, 8, 128}})
    for (const std::int64_t seqlen : {128, 512, 1024, 2048})
      cases.attention(even(1, seqlen, seqlen), h, {}, true, true);
  cases.attention(even(1, 512, 512), {32, 8, 128}, {DType::bf16, DType::bf16}, true, true);
  for (const Types& types : {Types{}, Types{DType::f32, DType::f16}, Types{DType::bf16, DType::bf16}})
    cases.attention(even(1, 1, 4096), {32, 8, 128}, types, true, true);
  cases.attention(even(1, 1, 512), {9, 3, 64}, {}, true, true);
  for (const KvFormat& kv : {KvFormat(DType::f32),
                             {DType::i8, KvFormat::row},
                             {DType::fp8_e4m3, KvFormat::row},
                             {DType::int4, KvFormat::row},
                             {DType::int4, KvFormat::row, 32, true, DType::f16}})
    cases.attention(even(1, 1, 32768), {32, 8, 128}, {DType::f32, kv}, true, true);
  cases.attention({{1, 1, 1, 1, 1, 1, 1, 1}, {100, 4000, 700, 30, 2500, 512, 1024, 64}, Batch::hnd},
                  {32, 8, 128}, {}, true, true);
  cases.attention({{256}, {2048}, Batch::hnd}, {9, 3, 64}, {}, true, true);
  // Windows, a part of the keys each; and what each of the other features costs.
  const Heads h{32, 8, 128};
  for (const std::int64_t left : {1023, 511, 255, 127})
    cases.featured(even(1, 2048, 2048), h, {}, {.window_left = left}, true);
  for (const std::int64_t left : {2047, 1023, 511})
    cases.featured(even(1, 1, 4096), h, {DType::f32, DType::f16}, {.window_left = left}, true);
  for (const Batch& b : {even(1, 1024, 1024), even(1, 1, 4096)}) {
    cases.featured(b, h, {}, {.softcap = 50}, true);
    cases.featured(b, h, {}, {.alibi = Features::slopes}, true);
    cases.featured(b, h, {}, {.mask = DType::boolean, .one_head = true}, true);
    cases.featured(b, h, {}, {.mask = DType::f32, .one_head = true}, true);
  }
  for (const double density : {1.0, 0.5, 0.25, 0.1}) {
    cases.featured(even(1, 2048, 2048), h, {}, {.layout = Layout{64, 64, density, Layout::query}}, true);
    cases.featured({{1}, {8192}, Batch::hnd}, h, {}, {.layout = Layout{0, 16, density, Layout::kv, true}},
                   true);
  }
  for (const auto& [n, m] : {std::pair{2, 4}, {4, 8}})
    for (const Batch& b : {even(1, 1024, 1024), even(1, 1, 4096)})
      cases.featured(b, h, {}, {.keep_n = n, .keep_m = m}, true);
}

}  // namespace
}  // namespace attention

void add_attention_cases(CaseList& list) {
  using namespace attention;
  Cases cases(list);
  add_forms(cases);
  add_head_shapes(cases);
  add_hostile(cases);
  add_features(cases);
  add_quantized(cases);
  add_block_sparse(cases);
  add_kept(cases);
  add_merges(cases);
  add_bench(cases);
}

// The shapes of an accelerator's prefill and decode.
void add_attention_device_cases(CaseList& list) {
  using namespace attention;
  Cases cases(list);
  const Types bf16{DType::bf16, DType::bf16};
  for (const Heads& h : {Heads{32, 32, 64}, Heads{32, 8, 128}, Heads{8, 8, 256}})
    for (const Batch& b : {even(16, 512, 512), even(4, 2048, 2048), even(1, 8192, 8192)})
      cases.attention(b, h, bf16, true, true);
  cases.attention(even(4, 2048, 2048), {32, 8, 128}, bf16, false, true);
  const Heads h{32, 8, 128};
  for (const Batch& b :
       {even(1, 1, 4096), even(1, 1, 32768), even(1, 1, 131072), even(8, 1, 8192), even(16, 1, 4096),
        even(64, 1, 1024), even(64, 1, 4096), even(128, 1, 2048), even(256, 1, 1024)})
    cases.attention(b, h, bf16, true, true);
  for (const Batch& b : {even(1, 1, 512), even(16, 1, 512)})
    cases.attention(b, {32, 8, 64}, bf16, true, true);
  cases.attention({{1}, {512}, Batch::hnd, 16}, {32, 8, 64}, bf16, true, true);
  cases.attention({{1}, {4096}, Batch::hnd, 16}, h, bf16, true, true);
  Batch ragged{
      std::vector<std::int64_t>(8, 1), {16000, 500, 8000, 3000, 12000, 100, 20000, 6000}, Batch::hnd, 16};
  cases.attention(ragged, h, bf16, true, true);
  ragged.form = Batch::nhd;
  cases.attention(ragged, h, bf16, true, true);
  cases.attention({{512}, {8192}, Batch::hnd, 16}, h, bf16, true, true);
  cases.attention({{4, 4}, {8192, 8192}, Batch::hnd, 16}, h, bf16, true, true);
}

}  // namespace kf::cases
