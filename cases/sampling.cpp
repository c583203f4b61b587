// Ids must be equal. Rows of the embedding are off by the rounding to the dtype of `out`; a q4_1 element is q
// d + m with both terms below 16.
#include "case.h"

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "kf/ops/sampling.h"

namespace kf::cases {
namespace {

constexpr DType kActivationDtypes[] = {DType::f32, DType::f16, DType::bf16};

void add_embedding(CaseList& list) {
  for (const DType table : {DType::f32, DType::f16, DType::bf16, DType::q4_0, DType::q4_1, DType::q5_0,
                            DType::q8_0, DType::q4_k, DType::q6_k}) {
    for (const DType out : kActivationDtypes) {
      for (const auto [blocks, scale] : {std::pair{1, 1.0f}, {18, 1.0f}, {18, 24.125f}}) {
        const std::int64_t hidden = blocks * std::max(32, dtype_info(table).block_elems);
        for (const std::int64_t num_tokens : {0, 1, 67}) {
          Case c;
          c.name = fmt::format("embedding/{}_to_{}/{}x{}{}", dtype_name(table), dtype_name(out), num_tokens,
                               hidden, scale == 1.0f ? "" : "_scaled");
          c.op = Op::embedding;
          c.make = [=](Maker& m) -> AnyParams {
            EmbeddingParams p;
            p.table = m.normal(table, {101, hidden});
            std::vector<std::int64_t> ids;
            for (std::int64_t t = 0; t < num_tokens; ++t) ids.push_back(t * 37 % 101);
            p.ids = m.integers(DType::i32, ids);
            p.out = m.filled(out, {num_tokens, hidden}, 0.0f);
            p.scale = scale;
            return p;
          };
          c.tolerance = {2 * unit_roundoff(out), scale * 16 * 0x1p-24 + (out == DType::f16 ? 0x1p-24 : 0.0)};
          list.push_back(std::move(c));
        }
      }
    }
  }
}

// Rows with ties, NaN, infinities and both zeros.
TensorView hostile_logits(Maker& m, DType dtype) {
  constexpr std::int64_t kVocab = 83;
  constexpr double kInf = std::numeric_limits<double>::infinity(),
                   kNan = std::numeric_limits<double>::quiet_NaN();
  const TensorView t = m.filled(dtype, {7, kVocab}, -1.0f);
  const auto set = [&](std::int64_t row, std::int64_t i, double v) { set_element(t, row * kVocab + i, v); };
  for (const std::int64_t i : {5, 11, 70}) set(1, i, 3.0);
  for (const std::int64_t i : {9, 64}) set(2, i, kNan);
  set(2, 3, kInf);
  for (const std::int64_t i : {20, 41}) set(3, i, kInf);
  for (std::int64_t i = 0; i < kVocab; ++i) set(4, i, -kInf);
  set(5, 50, -0.0);
  set(5, 60, 0.0);
  for (std::int64_t i = 0; i < kVocab; ++i) set(6, i, i == 82 ? -65504.0 : -kInf);
  return t;
}

struct Logits {
  std::string name;
  std::function<TensorView(Maker&, DType)> make;
  bool bench = false;
};

std::vector<Logits> logits_forms() {
  const auto random = [](std::int64_t rows, std::int64_t vocab, bool bench) {
    return Logits{fmt::format("{}x{}", rows, vocab),
                  [=](Maker& m, DType t) {
                    return m.normal(t, {rows, vocab}, 3.0f);
                  },
                  bench};
  };
  return {random(1, 1, false),
          random(3, 5, false),
          random(2, 1021, false),
          random(9, 49152, false),
          random(3, 100003, false),
          random(0, 64, false),
          {"strided",
           [](Maker& m, DType t) {
             return m.strided(m.normal(t, {4, 77}, 3.0f), 3);
           }},
          {"hostile", hostile_logits},
          random(1, 151936, true),
          random(8, 151936, true)};
}

void add_argmax(CaseList& list, DType dtype, const Logits& logits) {
  Case c;
  c.name = fmt::format("argmax/{}/{}", dtype_name(dtype), logits.name);
  c.op = Op::argmax;
  c.make = [=](Maker& m) -> AnyParams {
    ArgmaxParams p;
    p.logits = logits.make(m, dtype);
    return p;
  };
  c.bench = logits.bench;
  c.want = {"max"};
  list.push_back(std::move(c));
}

struct Filters {
  const char* name;
  float temperature = 1.0f;
  std::int64_t top_k = 0;
  float top_p = 1.0f, min_p = 0.0f;
};

constexpr Filters kFilters[] = {{"greedy", 0.0f},
                                {"all", 1.0f},
                                {"hot", 2.5f},
                                {"top_k1", 1.0f, 1},
                                {"top_k50", 0.8f, 50},
                                {"top_k_all", 1.0f, 1 << 20},
                                {"top_p90", 1.0f, 0, 0.9f},
                                {"min_p", 1.0f, 0, 1.0f, 0.05f},
                                {"top_k40_top_p95_min_p", 0.7f, 40, 0.95f, 0.02f}};

void add_sample(CaseList& list, DType dtype, const Logits& logits, const Filters& f) {
  Case c;
  c.name = fmt::format("sample/{}/{}/{}", dtype_name(dtype), logits.name, f.name);
  c.op = Op::sample;
  c.make = [=](Maker& m) -> AnyParams {
    SampleParams p;
    p.logits = logits.make(m, dtype);
    p.temperature = f.temperature;
    p.top_k = f.top_k;
    p.top_p = f.top_p;
    p.min_p = f.min_p;
    p.seed = 1234567890123;
    p.step = 17;
    return p;
  };
  c.bench = logits.bench;
  list.push_back(std::move(c));
}

}  // namespace

void add_sampling_cases(CaseList& list) {
  add_embedding(list);
  for (const DType dtype : kActivationDtypes) {
    for (const Logits& logits : logits_forms()) {
      add_argmax(list, dtype, logits);
      for (const Filters& f : kFilters) add_sample(list, dtype, logits, f);
    }
  }
}

void add_sampling_device_cases(CaseList& list) {
  for (const std::int64_t rows : {1, 64}) {
    const Logits logits{fmt::format("{}x128256", rows),
                        [=](Maker& m, DType t) {
                          return m.normal(t, {rows, 128256}, 3.0f);
                        },
                        true};
    add_argmax(list, DType::bf16, logits);
    for (const char* name : {"all", "top_k50", "top_p90", "top_k40_top_p95_min_p"})
      for (const Filters& f : kFilters)
        if (std::string_view(f.name) == name) add_sample(list, DType::bf16, logits, f);
  }
}

}  // namespace kf::cases
