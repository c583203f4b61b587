// Logits of tiny models against plain loops in double: every architecture, weight dtype, cache form and way
// of feeding the tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kf/engine.h"
#include "kf/error.h"
#include "tiny_model.h"

namespace kf::tests {
namespace {

using Logits = std::vector<std::vector<double>>;

EngineOptions fused_options() {
  EngineOptions o;
  o.fusion.mode = FusionPolicy::Mode::all;
  o.max_seq_len = 128;
  o.cache.page_size = 8;
  return o;
}

Logits rows_of(const TensorView& logits) {
  Logits rows(logits.dim(0), std::vector<double>(logits.dim(1)));
  for (std::int64_t i = 0; i < logits.numel(); ++i) {
    rows[i / logits.dim(1)][i % logits.dim(1)] = cases::element(logits, i);
  }
  return rows;
}

// Feeds one sequence in chunks of these sizes and gives the logits of every token.
Logits feed(Engine& engine, SequenceId sequence, const std::vector<std::int32_t>& tokens,
            const std::vector<std::size_t>& chunks) {
  Logits all;
  std::size_t begin = 0;
  for (const std::size_t size : chunks) {
    const StepInput in{sequence, std::span(tokens).subspan(begin, size), Rows::all};
    std::ranges::move(rows_of(engine.step({&in, 1})), std::back_inserter(all));
    begin += size;
  }
  return all;
}

Logits whole(const TinyModel& model, const EngineOptions& options, const std::vector<std::int32_t>& tokens) {
  Engine engine(model.config, model.weights, options);
  return feed(engine, engine.cache().create(), tokens, {tokens.size()});
}

void expect_close(const Logits& got, const Logits& expected, double relative) {
  double scale = 0;
  for (const auto& row : expected) {
    for (const double x : row) scale = std::max(scale, std::abs(x));
  }
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t t = 0; t < got.size(); ++t) {
    ASSERT_EQ(got[t].size(), expected[t].size());
    for (std::size_t i = 0; i < got[t].size(); ++i) {
      ASSERT_NEAR(got[t][i], expected[t][i], relative * scale) << "token " << t << ", logit " << i;
    }
  }
}

struct ModelCase {
  std::string name;
  Architecture architecture;
  TinyModelOptions options;
};
std::ostream& operator<<(std::ostream& os, const ModelCase& c) { return os << c.name; }

class ModelLogits : public ::testing::TestWithParam<ModelCase> {
 protected:
  const TinyModel model = make_tiny_model(GetParam().architecture, GetParam().options);
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 37, GetParam().name);
  const double tolerance = logits_tolerance(model.config, tokens.size(), cases::unit_roundoff(DType::f32));
};

TEST_P(ModelLogits, FusedMatchReference) {
  expect_close(whole(model, fused_options(), tokens), reference_logits(model, tokens), tolerance);
}

TEST_P(ModelLogits, UnfusedMatchReference) {
  expect_close(whole(model, EngineOptions::unfused(128), tokens), reference_logits(model, tokens), tolerance);
}

TEST_P(ModelLogits, ChunksAndSingleTokensMatchReference) {
  for (const EngineOptions& options : {fused_options(), EngineOptions::unfused(128)}) {
    Engine engine(model.config, model.weights, options);
    const Logits got = feed(engine, engine.cache().create(), tokens, {1, 7, 16, 1, 1, 9, 2});
    expect_close(got, reference_logits(model, tokens), tolerance);
  }
}

TEST_P(ModelLogits, GreedyIdsAreTheLargestLogits) {
  Engine engine(model.config, model.weights, fused_options());
  const StepInput in{engine.cache().create(), tokens, Rows::all};
  const TensorView ids = engine.step({&in, 1}, StepOutput::ids);
  const Logits reference = reference_logits(model, tokens);
  ASSERT_EQ(ids.dim(0), static_cast<std::int64_t>(tokens.size()));
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const double top = *std::ranges::max_element(reference[t]);
    EXPECT_NEAR(reference[t][ids.as<std::int32_t>()[t]], top, tolerance * std::abs(top)) << "token " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, ModelLogits,
    ::testing::Values(
        ModelCase{"llama_f32", Architecture::llama, {}},
        ModelCase{"llama_interleaved_q4_1",
                  Architecture::llama,
                  {.matrix_dtype = DType::q4_1, .tie_embeddings = true, .rope_interleaved = true}},
        ModelCase{"llama_scaled_rope", Architecture::llama, {.rope_scaling = true}},
        ModelCase{"mistral_bf16", Architecture::mistral, {.matrix_dtype = DType::bf16}},
        ModelCase{"mistral_q4_0", Architecture::mistral, {.matrix_dtype = DType::q4_0}},
        ModelCase{"qwen2_f32", Architecture::qwen2, {.tie_embeddings = true}},
        ModelCase{"qwen2_q8_0", Architecture::qwen2, {.matrix_dtype = DType::q8_0}},
        ModelCase{"qwen3_f32", Architecture::qwen3, {}},
        ModelCase{
            "qwen3_q8_0_tied", Architecture::qwen3, {.matrix_dtype = DType::q8_0, .tie_embeddings = true}}),
    [](const auto& info) { return info.param.name; });

TEST(Model, RaggedBatchMatchesSingleSequences) {
  const TinyModel model = make_tiny_model(Architecture::llama);
  const double tolerance = logits_tolerance(model.config, 40, cases::unit_roundoff(DType::f32));
  for (EngineOptions options : {fused_options(), EngineOptions::unfused(128)}) {
    options.max_batch_size = 3;
    Engine engine(model.config, model.weights, options);
    std::vector<std::vector<std::int32_t>> tokens;
    std::vector<SequenceId> sequences;
    for (const std::size_t length : {5, 29, 17}) {
      tokens.push_back(random_tokens(model.config, length, "ragged " + std::to_string(length)));
      sequences.push_back(engine.cache().create());
    }
    // A whole prompt, all but one token of another, and a part of the third; then one token, one token and
    // the rest.
    std::vector<Logits> got(3);
    const std::size_t first[] = {4, 28, 6};
    for (const bool second : {false, true}) {
      std::vector<StepInput> batch;
      for (std::size_t i = 0; i < 3; ++i) {
        const std::span<const std::int32_t> all(tokens[i]);
        batch.push_back({sequences[i], second ? all.subspan(first[i]) : all.first(first[i]), Rows::all});
      }
      Logits rows = rows_of(engine.step(batch));
      auto next = rows.begin();
      for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t t = 0; t < batch[i].tokens.size(); ++t) got[i].push_back(std::move(*next++));
      }
    }
    for (std::size_t i = 0; i < 3; ++i) expect_close(got[i], reference_logits(model, tokens[i]), tolerance);
  }
}

TEST(Model, CacheFormsAgree) {
  const TinyModel model = make_tiny_model(Architecture::qwen3);
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 33, "cache forms");
  const Logits reference = reference_logits(model, tokens);
  for (const KvLayout layout : {KvLayout::hnd, KvLayout::nhd}) {
    for (const std::int64_t page_size : {1, 16, 128}) {
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        EngineOptions options = fused_options();
        options.cache = {.dtype = dtype, .page_size = page_size, .layout = layout};
        const double tolerance =
            logits_tolerance(model.config, tokens.size(), cases::unit_roundoff(DType::f32)) +
            // keys and values are rounded once a layer
            (dtype == DType::f32 ? 0 : 2 * model.config.num_layers * cases::unit_roundoff(dtype));
        expect_close(whole(model, options, tokens), reference, tolerance);
      }
    }
  }
}

TEST(Model, ActivationsInTheDtypeOfTheEmbedding) {
  const TinyModel model = make_tiny_model(Architecture::llama, {.matrix_dtype = DType::bf16});
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 20, "bf16");
  const Logits reference = reference_logits(model, tokens);
  for (EngineOptions options : {fused_options(), EngineOptions::unfused(128)}) {
    options.activation_dtype = DType::bf16;
    // Every one of a layer's 16 results is rounded to bf16.
    expect_close(whole(model, options, tokens), reference,
                 (16.0 * model.config.num_layers + 4) * cases::unit_roundoff(DType::bf16));
  }
  EngineOptions options = fused_options();
  options.activation_dtype = DType::f16;
  Engine engine(model.config, model.weights, options);
  EXPECT_THROW(engine.graph(StepOutput::logits), Error);
}

TEST(Model, EachRuleLeavesTheLogits) {
  const TinyModel model = make_tiny_model(Architecture::qwen3, {.matrix_dtype = DType::q8_0});
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 11, "rules");
  const Logits reference = reference_logits(model, tokens);
  const double tolerance = logits_tolerance(model.config, tokens.size(), cases::unit_roundoff(DType::f32));
  for (const Rule& rule : builtin_rules()) {
    SCOPED_TRACE(rule.name);
    EngineOptions options = fused_options();
    options.fusion.only = {rule.name};
    expect_close(whole(model, options, tokens), reference, tolerance);
  }
}

TEST(Model, FusionAtLeastHalvesTheLaunches) {
  const TinyModel model = make_tiny_model(Architecture::llama, {.matrix_dtype = DType::q4_1});
  int launches[2];
  for (const bool fused : {false, true}) {
    Engine engine(model.config, model.weights, fused ? fused_options() : EngineOptions::unfused(128));
    const std::vector<std::int32_t> tokens = random_tokens(model.config, 4, "launches");
    const StepInput in{engine.cache().create(), tokens, Rows::last};
    engine.step({&in, 1}, StepOutput::ids);
    launches[fused] = engine.last_step().launches;
  }
  EXPECT_LE(2 * launches[1], launches[0]);
}

// --- names, sizes, architectures

TEST(ModelConfig, UnknownArchitectureNamesWhatIsServed) {
  try {
    architecture_from_name("mamba");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::not_implemented);
    EXPECT_STREQ(e.what(),
                 "model architecture 'mamba' is not served; served are: llama, mistral, qwen2, qwen3, "
                 "phi3, gemma2, gemma3_text");
  }
  for (const char* name : {"llama", "mistral", "qwen2", "qwen3"}) {
    EXPECT_STREQ(architecture_name(architecture_from_name(name)), name);
  }
}

TEST(ModelConfig, SizesMustFitTogether) {
  const ModelConfig good = make_tiny_model(Architecture::llama).config;
  EXPECT_NO_THROW(good.validate());
  const auto refused = [&](auto change) {
    ModelConfig bad = good;
    change(bad);
    EXPECT_THROW(bad.validate(), Error);
  };
  refused([](ModelConfig& c) { c.num_layers = 0; });
  refused([](ModelConfig& c) { c.vocab_size = -1; });
  refused([](ModelConfig& c) { c.num_kv_heads = 3; });
  refused([](ModelConfig& c) { c.head_dim = 31; });
  refused([](ModelConfig& c) { c.rms_norm_eps = std::nanf(""); });
  refused([](ModelConfig& c) { c.rms_norm_eps = HUGE_VALF; });
  refused([](ModelConfig& c) { c.rope_theta = 0; });
  refused([](ModelConfig& c) { c.rope_theta = HUGE_VAL; });
}

TEST(ModelConfig, SizesThatNoFileHasAreRefusedBeforeAnythingIsMade) {
  const TinyModel model = make_tiny_model(Architecture::llama);
  const auto refused = [&](auto change) {
    ModelConfig bad = model.config;
    change(bad);
    EXPECT_THROW(bad.validate(), Error);
    EXPECT_THROW(expected_weights(bad), Error);
    EXPECT_THROW(check_weights(bad, model.weights), Error);
    EXPECT_THROW(Engine(bad, model.weights), Error);
  };
  constexpr std::int64_t kInt32 = std::numeric_limits<std::int32_t>::max();
  refused([](ModelConfig& c) { c.num_layers = kInt32; });
  refused([](ModelConfig& c) { c.num_layers = std::numeric_limits<std::int64_t>::max(); });
  refused([](ModelConfig& c) { c.hidden_size = kInt32 + 1; });
  refused([](ModelConfig& c) { c.head_dim = kInt32 - 1; });  // times four heads
  refused([](ModelConfig& c) { c.num_heads = c.num_kv_heads = c.head_dim = std::int64_t{1} << 40; });
  // Within the bounds, and still more than the file holds.
  ModelConfig deep = model.config;
  deep.num_layers = 60'000;
  try {
    check_weights(deep, model.weights);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "model weights: num_layers is 60000, but there are 21 tensors in all");
  }
}

TEST(ModelWeights, GgufNamesBecomeCanonical) {
  EXPECT_EQ(canonical_tensor_name("token_embd.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(canonical_tensor_name("output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(canonical_tensor_name("output.weight"), "lm_head.weight");
  EXPECT_EQ(canonical_tensor_name("rope_freqs.weight"), "rope_freqs.weight");
  EXPECT_EQ(canonical_tensor_name("blk.17.attn_q.bias"), "model.layers.17.self_attn.q_proj.bias");
  EXPECT_EQ(canonical_tensor_name("blk.0.attn_k_norm.weight"), "model.layers.0.self_attn.k_norm.weight");
  EXPECT_EQ(canonical_tensor_name("blk.3.ffn_down.weight"), "model.layers.3.mlp.down_proj.weight");
  for (const char* other : {"", "blk", "blk.attn_q.weight", "blk.-1.attn_q.weight", "blk.1.ssm_in.weight",
                            "blk.1", "blk.99999999999.attn_q.weight", "token_embd.scale", "blk.1.attn_q"}) {
    EXPECT_FALSE(canonical_tensor_name(other)) << other;
  }
  EXPECT_EQ(canonical_tensor_name("blk.1.attn_qkv.weight", Architecture::phi3),
            "model.layers.1.self_attn.qkv_proj.weight");
  EXPECT_EQ(canonical_tensor_name("blk.1.ffn_up.weight", Architecture::phi3),
            "model.layers.1.mlp.gate_up_proj.weight");
  EXPECT_EQ(canonical_tensor_name("blk.1.ffn_norm.weight", Architecture::gemma2),
            "model.layers.1.pre_feedforward_layernorm.weight");
  EXPECT_EQ(canonical_tensor_name("blk.1.post_ffw_norm.weight", Architecture::gemma3_text),
            "model.layers.1.post_feedforward_layernorm.weight");
  EXPECT_FALSE(canonical_tensor_name("blk.1.post_ffw_norm.weight"));
}

// The message of the error that check_weights gives after this change.
template <class Change>
std::string fault_after(Architecture architecture, Change change) {
  TinyModel model = make_tiny_model(architecture);
  change(model);
  try {
    check_weights(model.config, model.weights);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    return e.what();
  }
  return "none";
}

TEST(ModelWeights, FaultsNameTheTensor) {
  EXPECT_EQ(fault_after(Architecture::qwen3, [](TinyModel&) {}), "none");
  EXPECT_EQ(fault_after(Architecture::llama, [](TinyModel& m) { m.weights.erase("model.norm.weight"); }),
            "model weights: model.norm.weight: missing, expected [64]");
  EXPECT_EQ(fault_after(Architecture::llama,
                        [](TinyModel& m) {
                          TensorView& t = m.weights["model.layers.1.mlp.up_proj.weight"];
                          t = t.slice(0, 0, 95);
                        }),
            "model weights: model.layers.1.mlp.up_proj.weight: expected shape [96, 64], got [95, 64]");
  EXPECT_EQ(fault_after(Architecture::llama,
                        [](TinyModel& m) { m.weights["model.norm.weight"].dtype = DType::i32; }),
            "model weights: model.norm.weight: expected dtype f32, f16 or bf16, got i32");
  EXPECT_EQ(
      fault_after(Architecture::llama, [](TinyModel& m) { m.weights["lm_head.weight"].dtype = DType::i8; }),
      "model weights: lm_head.weight: expected dtype f32, f16, bf16, q4_0, q4_1, q5_0, q8_0, q4_k or q6_k, "
      "got i8");
  EXPECT_EQ(fault_after(Architecture::llama,
                        [](TinyModel& m) {
                          m.weights["model.layers.0.self_attn.q_proj.bias"] = m.weights["model.norm.weight"];
                        }),
            "model weights: model.layers.0.self_attn.q_proj.bias: a llama model of this configuration has no "
            "use for it");
  // A list of hundreds is cut short.
  const std::string all = fault_after(Architecture::llama, [](TinyModel& m) {
    std::erase_if(m.weights, [](const auto& w) { return !w.first.ends_with("norm.weight"); });
  });
  EXPECT_NE(all.find("model.embed_tokens.weight: missing"), std::string::npos) << all;
  EXPECT_NE(all.find("more"), std::string::npos) << all;
}

}  // namespace
}  // namespace kf::tests
