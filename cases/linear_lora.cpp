// Linear layers with low-rank adapters.
#include "linear_cases.h"

namespace kf::cases::linear {

// Low-rank adapters: one for the call or one of several for each token (-1: none), ranks that are and are not whole
// vectors, more of them than a block has, around every other part of the layer.
void add_adapters(CaseList& list) {
  struct Adapters {
    std::int64_t rank, count;  // count 0: one for the call
    DType dtype;
  };
  const auto add = [&](DType x, WeightFormat w, Shape s, Adapters l, Around a = {}, bool bench = false) {
    const std::string name =
        fmt::format("linear/{}/{}/{}{}/lora-{}-r{}{}", dtype_name(x), w.name(), shape_name(s), a.name(),
                    dtype_name(l.dtype), l.rank, l.count == 0 ? "" : fmt::format("-of{}", l.count));
    const auto make = [=](Maker& m) {
      LinearParams p;
      p.x = m.normal(x, {s.num_tokens, s.in});
      p.weight = weight(m, w, s.out, s.in, {&p.weight_quantization, &p.weight_sparsity});
      if (a.norm != NormKind::none) add_norm(m, p.prologue, a.norm, x, s.in, a.norm_weight_offset);
      if (a.bias) p.bias = m.normal(x, {s.out});
      p.activation = a.after;
      if (a.residual) p.residual = m.normal(x, {s.num_tokens, s.out});
      // x @ a^T of deviation 1, and with b of 1 / sqrt(rank) what is added too.
      const float of_a = weight_deviation(s.in), of_b = weight_deviation(l.rank);
      p.lora.scale = l.count == 0 ? 1.0f : 0.5f;
      if (l.count == 0) {
        p.lora.a = m.normal(l.dtype, {l.rank, s.in}, of_a);
        p.lora.b = m.normal(l.dtype, {s.out, l.rank}, of_b);
        return p;
      }
      p.lora.a = m.normal(l.dtype, {l.count, l.rank, s.in}, of_a);
      p.lora.b = m.normal(l.dtype, {l.count, s.out, l.rank}, of_b);
      m.storage().emplace_back(DType::i32, std::initializer_list<std::int64_t>{s.num_tokens});
      p.lora.index = m.storage().back();
      for (std::int64_t t = 0; t < s.num_tokens; ++t)
        set_element(p.lora.index, t, static_cast<double>(t / 3 % (l.count + 1) - 1));
      return p;
    };
    // The sum has deviation sqrt(2); the unfused form rounds x @ a^T, what b makes of it, and their sum.
    Tolerance t = tolerance(x, {s.in, s.in, l.rank}, 3 + a.intermediates());
    t.atol *= 1.5;
    list.push_back({name, Op::linear, make, t, bench, {}});
  };
  for (const DType x : kActivationDTypes)
    for (const std::int64_t num_tokens : {0, 1, 3, 16, 37, 131}) {
      add(x, x, {num_tokens, 320, 71}, {16, 0, x}, {.bias = true});
      add(x, DType::q4_1, {num_tokens, 320, 71}, {5, 0, DType::f32},
          {.norm = NormKind::rms, .bias = true, .after = Activation::silu, .residual = true});
      add(x, x, {num_tokens, 75, 97}, {8, 3, DType::bf16}, {.residual = true});
    }
  for (const std::int64_t num_tokens : {1, 4, 17, 200}) {
    add(DType::f32, WeightFormat(DType::f32).n_of_m(2, 4), {num_tokens, 640, 130}, {64, 0, DType::f32});
    add(DType::f32, WeightFormat(DType::int4, 64, DType::f16), {num_tokens, 640, 130}, {37, 2, DType::f16});
    add(DType::f32, DType::f32, {num_tokens, 1300, 40}, {512, 0, DType::f32});
    add(DType::f32, DType::f32, {num_tokens, 33, 1}, {1, 1, DType::f32});
  }
  for (const std::int64_t num_tokens : {1, 4, 16, 512}) {
    add(DType::f32, DType::f32, {num_tokens, 4096, 4096}, {16, 0, DType::f32}, {}, true);
    add(DType::f32, DType::q4_1, {num_tokens, 4096, 4096}, {16, 0, DType::f32}, {}, true);
    add(DType::f32, DType::f32, {num_tokens, 576, 576}, {16, 0, DType::f32}, {}, true);
  }
}

}  // namespace kf::cases::linear
