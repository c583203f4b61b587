// Attention to a part of the keys: block layouts, lists of blocks, and the largest scores.
#include "attention_cases.h"

namespace kf::cases::attention {

// Block layouts and lists of key blocks, alone over forms and stages, and with everything else.
void add_block_sparse(Cases& cases) {
  std::vector<Batch> batches = {even(2, 61, 61),  even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(1, 1, 2500), even(2, 12, 5),    even(1, 3, 0),    even(0, 3, 3)};
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}, form, 5});
    batches.push_back({{1, 1, 1}, {7, 600, 0}, form, 16});
  }
  std::vector<Layout> layouts = {{16, 16},
                                 {64, 64, 0.5, Layout::query},
                                 {128, 128, 0.5, Layout::kv},
                                 {1, 1, 0.3, Layout::one, false, true},
                                 {7, 5, 0.5, Layout::query, true},
                                 {7, 5, 0.1, Layout::kv, true},
                                 {0, 16, 0.5, Layout::kv, true},
                                 {0, 16, 0.2, Layout::query, true},
                                 {2, 1000, 0.7, Layout::query},
                                 {20, 32, 1.0, Layout::query},
                                 {20, 32, 0.0}};
  for (const Batch& b : batches)
    for (const Layout& l : layouts)
      for (const bool causal : {true, false}) {
        const Features f{.causal = causal, .layout = l};
        cases.featured(b, {6, 2, 64}, {}, f);
        cases.mask(b, {6, 2, 64}, f);
      }

  std::mt19937_64 rng(22);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 160; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 3 == 0) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 3 == 0) f.softcap = 30.0f;
    if (rng() % 3 == 0) f.alibi = Features::slopes_of_batch;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    f.sinks = rng() % 4 == 0;
    f.layout = Layout{one_of(std::array{0, 1, 8, 48, 64}),
                      one_of(std::array{1, 3, 16, 64, 128}),
                      0.4,
                      static_cast<Layout::Heads>(rng() % 3),
                      rng() % 2 == 0,
                      rng() % 3 == 0};
    const Batch& b = batches[rng() % batches.size()];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 9}),
                       dim = 8 << rng() % 5;
    const KvFormat formats[] = {DType::f32,
                                DType::f16,
                                DType::bf16,
                                {DType::i8, KvFormat::row},
                                {DType::int4, KvFormat::row, 0, true},
                                {DType::fp8_e4m3, KvFormat::token}};
    cases.featured(b, {kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5},
                   {one_of(std::array{DType::f32, DType::bf16}), one_of(formats)}, f, false,
                   fmt::format("-{}", i));
  }
}

// Of every m neighbouring scores the n largest.
void add_kept(Cases& cases) {
  std::vector<Batch> batches = {even(2, 61, 61),  even(1, 150, 150), even(2, 19, 301), even(3, 1, 290),
                                even(1, 1, 2500), even(2, 12, 5),    even(1, 3, 0)};
  for (const auto form : {Batch::packed, Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 70, 13, 5, 0}, {300, 70, 141, 2, 9}, form, 5});
    batches.push_back({{1, 1, 1}, {7, 600, 0}, form, 16});
  }
  const std::pair<int, int> patterns[] = {{2, 4},  {1, 2}, {1, 4}, {4, 8},  {5, 16},
                                          {1, 32}, {4, 4}, {3, 5}, {7, 100}};
  for (const Batch& b : batches)
    for (const auto& [n, m] : patterns)
      for (const bool causal : {true, false}) {
        const Features f{.causal = causal, .keep_n = n, .keep_m = m};
        cases.featured(b, {6, 2, 64}, {}, f);
        cases.mask(b, {6, 2, 64}, f);
      }
  std::mt19937_64 rng(23);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 96; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 3 == 0) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 3 == 0) f.alibi = Features::slopes;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    if (!f.alibi && !f.mask && rng() % 2) f.softcap = 30.0f;
    f.sinks = rng() % 4 == 0;
    std::tie(f.keep_n, f.keep_m) = one_of(patterns);
    // Only the reference takes sinks with groups that the fused kernel does not.
    if (rng() % 3 == 0)
      f.layout = Layout{one_of(std::array{0, 8, 64}), 32, 0.4, static_cast<Layout::Heads>(rng() % 3),
                        rng() % 2 == 0};
    if ((f.keep_m & (f.keep_m - 1)) != 0) f.sinks = false;
    const Batch& b = batches[rng() % batches.size()];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 9}),
                       dim = one_of(std::array{16, 64, 256});
    const KvFormat formats[] = {DType::f32, DType::f16, DType::bf16, {DType::i8, KvFormat::row}};
    cases.featured(b, {kv * group, kv, dim, rng() % 3 ? 0 : std::int64_t{8} << rng() % 5},
                   {one_of(std::array{DType::f32, DType::bf16}), one_of(formats)}, f, false,
                   fmt::format("-{}", i));
  }
  // Blocks that do not hold whole groups: the unfused form and the reference.
  cases.featured(even(1, 40, 90), {4, 2, 64}, {}, {.layout = Layout{8, 3, 0.5}, .keep_n = 2, .keep_m = 4});

  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150, 20 * unit_roundoff(DType::f32));
  for (const std::int64_t seqlen_q : {1, 40}) {
    const auto with = [&](const std::string& name, auto change) {
      cases.special(fmt::format("keep2of4-{}/q{}", name, seqlen_q), even(1, seqlen_q, 150), h, plain,
                    [=](Maker&, AttentionParams& p) {
                      round_to_eighths(p.q), round_to_eighths(p.k);
                      p.sparsity.keep_n = 2, p.sparsity.keep_m = 4;
                      change(p);
                    });
    };
    const auto fill = [](const TensorView& t, std::int64_t key, float value) {
      for (std::int64_t i = 0; i < 2 * t.dim(-1); ++i) set_element(t, key * 2 * t.dim(-1) + i, value);
    };
    with("ties", [=](AttentionParams& p) {  // all keys alike: the first two of every four
      for (std::int64_t j = 0; j < 150; ++j) fill(p.k, j, 0.25f);
    });
    with("nan-key", [=](AttentionParams& p) { fill(p.k, 6, kNan); });
    with("three-nan-keys", [=](AttentionParams& p) {
      for (const std::int64_t key : {4, 5, 7}) fill(p.k, key, kNan);
    });
    with("infinite-key", [=](AttentionParams& p) { set_element(p.k, 6 * 128, kInfinity); });
    with("negative-scale", [=](AttentionParams& p) { p.softmax_scale = -0.125f; });
  }
}

}  // namespace kf::cases::attention
