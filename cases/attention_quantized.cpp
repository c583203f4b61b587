// Attention over quantized keys and values.
#include "attention_cases.h"

namespace kf::cases::attention {

// Quantized keys and values: every dtype and what may share a scale, over the forms and stages; with the features; and
// what codes and scales may hold.
void add_quantized(Cases& cases) {
  using Kv = KvFormat;
  const DType dtypes[] = {DType::int4, DType::i8, DType::fp8_e4m3, DType::fp8_e5m2};
  std::vector<KvFormat> formats;
  for (const DType dtype : dtypes) {
    const bool is_integer = dtype == DType::int4 || dtype == DType::i8;
    for (const auto share : {Kv::tensor, Kv::head, Kv::token, Kv::row}) {
      formats.push_back({dtype, share});
      if (is_integer) formats.push_back({dtype, share, 0, true});
    }
    formats.push_back({dtype, Kv::row, 0, false, DType::f16});
    formats.push_back({dtype, Kv::row, 16, false, DType::bf16});
    formats.push_back({dtype, Kv::row, 32, is_integer, DType::f16});
    formats.push_back({dtype, Kv::head, 32});
  }
  std::vector<Batch> batches = {even(2, 33, 33), even(1, 1, 307), even(3, 7, 101), even(1, 113, 271),
                                even(1, 3, 0),   even(2, 12, 5),  even(0, 3, 3)};
  batches.push_back({{0, 5, 1, 37, 100}, {3, 0, 19, 37, 131}, Batch::packed});
  for (const auto form : {Batch::hnd, Batch::nhd}) {
    batches.push_back({{1, 1, 1, 1}, {1, 0, 300, 67}, form, 16, true});
    batches.push_back({{4, 0, 61, 9, 1}, {129, 7, 61, 2, 530}, form, 5});
  }
  for (const KvFormat& format : formats)
    for (const Batch& b : batches) {
      cases.attention(b, {6, 2, 64}, {DType::f32, format});
      if (!b.seqlens_q.empty() && format.scales == DType::f32)
        cases.primitives(b, {6, 2, 64}, {DType::f32, format});
    }
  // The unfused form alone takes head_dims that are no multiples of 8.
  for (const DType dtype : dtypes) {
    cases.attention(even(1, 19, 37), {2, 1, 20}, {DType::f32, {dtype, Kv::row}});
    for (const std::int64_t head_dim : {8, 40, 72, 128, 192, 256})
      for (const std::int64_t seqlen_q : {1, 19}) {
        cases.attention(even(1, seqlen_q, 150), {4, 2, head_dim}, {DType::f16, {dtype, Kv::row}});
        cases.attention(even(1, seqlen_q, 150), {4, 2, head_dim, 64}, {DType::bf16, {dtype, Kv::token}},
                        false);
      }
    for (const std::int64_t group : {1, 2, 3, 5, 8, 9, 12})
      cases.attention(even(2, 1, 290), {2 * group, 2, 64}, {DType::f32, {dtype, Kv::row}});
  }
  cases.attention(even(1, 1, 9001), {8, 2, 128}, {DType::f32, {DType::int4, Kv::row, 64, true, DType::f16}});

  std::mt19937_64 rng(21);
  const auto one_of = [&](const auto& choices) { return choices[rng() % std::size(choices)]; };
  for (int i = 0; i < 96; ++i) {
    Features f;
    f.causal = rng() % 2 == 0;
    if (rng() % 2) f.window_left = one_of(std::array{0, 2, 17, 64, 200});
    if (rng() % 4 == 0) f.window_right = one_of(std::array{0, 3, 40});
    if (rng() % 2) f.softcap = 30.0f;
    if (rng() % 3 == 0) f.alibi = Features::slopes;
    if (rng() % 3 == 0) f.mask = one_of(std::array{DType::boolean, DType::f32}), f.one_head = true;
    f.sinks = rng() % 4 == 0;
    const Batch& b = batches[rng() % 2 ? 1 + rng() % 3 : 7 + rng() % 5];
    const std::int64_t kv = one_of(std::array{1, 2, 3}), group = one_of(std::array{1, 2, 4, 8});
    cases.featured(b, {kv * group, kv, 64, rng() % 3 ? 0 : std::int64_t{128}},
                   {DType::f32, formats[rng() % formats.size()]}, f, false, fmt::format("-{}", i));
  }

  const Heads h{4, 2, 64};
  const Tolerance plain = attention_tolerance(DType::f32, h.dim, 150, 20 * unit_roundoff(DType::f32));
  for (const DType dtype : dtypes) {
    const std::string suffix = fmt::format("/kv-{}", dtype_name(dtype));
    const Types rows{DType::f32, {dtype, Kv::row}}, groups{DType::f32, {dtype, Kv::row, 32}};
    // Keys and values are the halves of one pool, and so are their scales.
    cases.special(
        "halves" + suffix, even(2, 3, 150), h, plain,
        [dtype](Maker& m, AttentionParams& p) {
          const auto halve = [](const TensorView& both, TensorView& k, TensorView& v) {
            k = both.slice(2, 0, 2), v = both.slice(2, 2, 4);
          };
          Quantization q;
          const TensorView both =
              quantized(m, {dtype, KvFormat::row}, m.normal(DType::f32, {2, 150, 4, 64}), 2, q);
          halve(both, p.k, p.v);
          halve(q.scales, p.k_quantization.scales, p.v_quantization.scales);
        },
        rows);
    for (const std::int64_t seqlen_q : {1, 40}) {
      const Batch b = even(1, seqlen_q, 150);
      const std::string name = fmt::format("/q{}{}", seqlen_q, suffix);
      for (const Types& types : {rows, groups}) {
        const std::string own = (types.kv.group_size ? "-of-group" : "") + name;
        const std::int64_t key = types.kv.group_size ? 7 * 4 : 7 * 2;  // the scale of key 7's first head
        cases.special(
            "nan-scale" + own, b, h, plain,
            [=](Maker&, AttentionParams& p) { set_element(p.k_quantization.scales, key, kNan); }, types);
        cases.special(
            "nan-value-scale" + own, b, h, plain,
            [=](Maker&, AttentionParams& p) { set_element(p.v_quantization.scales, key, kNan); }, types);
        cases.special(
            "zero-scales" + own, b, h, plain,
            [](Maker&, AttentionParams& p) {
              for (std::int64_t i = 0; i < p.k_quantization.scales.numel(); i += 3)
                set_element(p.k_quantization.scales, i, 0), set_element(p.v_quantization.scales, i, 0);
            },
            types);
        cases.special(
            "denormal-scales" + own, b, h, plain,
            [](Maker&, AttentionParams& p) {
              for (std::int64_t i = 0; i < p.k_quantization.scales.numel(); ++i)
                set_element(p.k_quantization.scales, i, 1e-39),
                    set_element(p.v_quantization.scales, i, 1e-39);
            },
            types);
      }
      // Every code there is, NaN and infinities of fp8 among them; values of key 3 alone, so that other rows show.
      cases.special(
          "all-codes" + name, b, h, plain,
          [](Maker&, AttentionParams& p) {
            auto* const codes = p.v.as<std::uint8_t>();
            const std::int64_t row = 2 * 64 / dtype_info(p.v.dtype).block_elems;
            for (std::int64_t i = 0; i < row; ++i)
              codes[3 * row + i] = static_cast<std::uint8_t>(2 * i + i % 2);
          },
          rows);
    }
  }
  // The farthest that codes and zeros may be apart: 255, 135.
  for (const DType dtype : {DType::int4, DType::i8})
    for (const std::int64_t seqlen_q : {1, 40})
      cases.special(fmt::format("extreme-zeros/q{}/kv-{}", seqlen_q, dtype_name(dtype)),
                    even(1, seqlen_q, 150), h, plain,
                    [](Maker&, AttentionParams& p) {
                      for (Quantization* q : {&p.k_quantization, &p.v_quantization})
                        for (std::int64_t i = 0; i < q->zeros.numel(); ++i) {
                          q->zeros.as<std::int8_t>()[i] = i % 2 ? 127 : -128;
                          set_element(q->scales, i, 1.0 / 256);
                        }
                    },
                    {DType::f32, {dtype, Kv::row, 0, true}});
}

}  // namespace kf::cases::attention
