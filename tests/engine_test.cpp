// Steps and generation: what is refused, what stays as it was, what is planned when, and texts that do not
// depend on their neighbours.
#include "kf/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <limits>
#include <stdexcept>

#include "kf/error.h"
#include "kf/generate.h"
#include "tiny_model.h"

namespace kf::tests {
namespace {

EngineOptions small_options() {
  EngineOptions o;
  o.fusion.mode = FusionPolicy::Mode::all;
  o.max_seq_len = 64;
  o.max_step_tokens = 16;
  o.cache = {.page_size = 4, .num_pages = 24};
  return o;
}

template <class F>
ErrorCode code_of(F&& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::unavailable;
}

class EngineTest : public ::testing::Test {
 protected:
  std::vector<std::int32_t> tokens(std::size_t count, const char* seed = "engine") const {
    return random_tokens(model.config, count, seed);
  }
  std::int32_t feed(Engine& e, SequenceId sequence, const std::vector<std::int32_t>& ids) {
    const StepInput in{sequence, ids};
    return *e.step({&in, 1}, StepOutput::ids).as<std::int32_t>();
  }
  std::vector<std::int32_t> generate_one(Engine& e, const GenerateRequest& request) {
    return generate(e, {&request, 1}).front().tokens;
  }

  const TinyModel model = make_tiny_model(Architecture::llama, {.matrix_dtype = DType::q8_0});
  Engine engine{model.config, model.weights, small_options()};
};

TEST_F(EngineTest, OptionsOutOfRangeAreRefused) {
  const auto refused = [&](auto change) {
    EngineOptions o = small_options();
    change(o);
    EXPECT_THROW(Engine(model.config, model.weights, o), Error);
  };
  refused([](EngineOptions& o) { o.max_seq_len = 513; });
  refused([](EngineOptions& o) { o.max_batch_size = 0; });
  refused([](EngineOptions& o) { o.max_step_tokens = 3; });
  refused([](EngineOptions& o) { o.max_executables = 0; });
  refused([](EngineOptions& o) { o.max_batch_size = std::numeric_limits<std::int64_t>::max(); });
  refused([](EngineOptions& o) { o.max_step_tokens = std::int64_t{1} << 31; });
  refused([](EngineOptions& o) { o.num_threads = -1; });
  refused([](EngineOptions& o) { o.num_threads = 100'000; });
  refused([](EngineOptions& o) { o.cache.page_size = -1; });
  refused([](EngineOptions& o) { o.cache.page_size = std::numeric_limits<std::int64_t>::max(); });
  ModelConfig windowed = model.config;
  windowed.sliding_window = -1;
  EXPECT_THROW(Engine(windowed, model.weights, small_options()), Error);
}

// A token whose window reaches as far as the text is the same token; one that sees less is not.
TEST_F(EngineTest, AWindowCutsWhatIsAttended) {
  ModelConfig windowed = model.config;
  windowed.sliding_window = 12;
  const auto logits = [&](const ModelConfig& config, const EngineOptions& options, std::size_t count) {
    Engine e(config, model.weights, options);
    const SequenceId sequence = e.cache().create();
    const std::vector<std::int32_t> ids = tokens(count);
    const StepInput in{sequence, ids};
    const TensorView out = e.step({&in, 1}, StepOutput::logits);
    return std::vector<float>(out.as<float>(), out.as<float>() + out.numel());
  };
  EXPECT_EQ(logits(windowed, small_options(), 12), logits(model.config, small_options(), 12));
  const std::vector<float> fused = logits(windowed, small_options(), 16);
  const std::vector<float> unfused = logits(windowed, EngineOptions::unfused(64), 16);
  for (std::size_t i = 0; i < fused.size(); ++i) EXPECT_NEAR(fused[i], unfused[i], 1e-3) << i;
  EXPECT_NE(fused, logits(model.config, small_options(), 16));
  for (std::int64_t n = 0; n < model.config.num_layers; ++n)
    windowed.full_layers.push_back(n);  // none has it
  EXPECT_EQ(logits(windowed, small_options(), 16), logits(model.config, small_options(), 16));
}

TEST_F(EngineTest, TheBaselineTakesTheModelsLength) {
  Engine unfused(model.config, model.weights, EngineOptions::unfused());
  EXPECT_EQ(unfused.options().max_seq_len, 512);
  EXPECT_EQ(unfused.options().cache.page_size, 512);
  EXPECT_EQ(unfused.options().cache.num_pages, unfused.options().max_batch_size);
}

TEST_F(EngineTest, ShapesBeyondTheOptionsAreRefused) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const auto code = [&](std::int64_t tokens, std::int64_t batch, std::int64_t rows, std::int64_t context) {
    return code_of([&] { engine.shape_of(StepOutput::ids, tokens, batch, rows, context); });
  };
  EXPECT_EQ(code(1, 1, 1, kHuge), ErrorCode::invalid_argument);
  EXPECT_EQ(code(1, 1, 1, 65), ErrorCode::invalid_argument);
  EXPECT_EQ(code(1, 1, 1, 0), ErrorCode::invalid_argument);
  EXPECT_EQ(code(17, 1, 1, 17), ErrorCode::invalid_argument);
  EXPECT_EQ(code(0, 1, 0, 1), ErrorCode::invalid_argument);
  EXPECT_EQ(code(8, 5, 5, 8), ErrorCode::invalid_argument);
  EXPECT_EQ(code(2, 3, 2, 8), ErrorCode::invalid_argument);
  EXPECT_EQ(code(2, 1, 3, 8), ErrorCode::invalid_argument);
  // Another engine's shape, of a longer step than this one's tables hold.
  EngineOptions o = small_options();
  o.max_step_tokens = 32;
  Engine larger(model.config, model.weights, o);
  const StepShape shape = larger.shape_of(StepOutput::ids, 32, 1, 1, 32);
  EXPECT_EQ(code_of([&] { engine.prepare(shape); }), ErrorCode::invalid_argument);
  EXPECT_NO_THROW(larger.prepare(shape));
}

TEST_F(EngineTest, RefusedStepsChangeNothing) {
  const SequenceId a = engine.cache().create(), b = engine.cache().create();
  feed(engine, a, tokens(5));
  const std::int64_t free_pages = engine.cache().num_free_pages();
  const auto step = [&](std::vector<StepInput> batch) { return code_of([&] { engine.step(batch); }); };
  const std::vector<std::int32_t> ok = tokens(2), outside = {1, 96}, negative = {-1}, many = tokens(17), none;

  EXPECT_EQ(step({{a, ok}, {b, outside}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step({{b, negative}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step({{a, ok}, {b, none}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step({{a, ok}, {a, ok}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step({{a, ok}, {77, ok}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step({{b, many}}), ErrorCode::invalid_argument);
  EXPECT_EQ(step(std::vector<StepInput>(5, {a, ok})), ErrorCode::invalid_argument);
  EXPECT_EQ(engine.cache().length(a), 5);
  EXPECT_EQ(engine.cache().length(b), 0);
  EXPECT_EQ(engine.cache().num_free_pages(), free_pages);
  EXPECT_EQ(engine.step({}).numel(), 0);
}

TEST_F(EngineTest, FullSequencesAndFullCachesAreRefused) {
  std::vector<SequenceId> sequences;
  for (int i = 0; i < 2; ++i) {
    sequences.push_back(engine.cache().create());
    for (int n = 0; n < 3; ++n) feed(engine, sequences.back(), tokens(16));
  }
  EXPECT_EQ(engine.cache().num_free_pages(), 0);
  EXPECT_EQ(code_of([&] { feed(engine, sequences[0], tokens(1)); }), ErrorCode::resource_exhausted);
  EXPECT_EQ(engine.cache().length(sequences[0]), 48);
  engine.cache().release(sequences[1]);
  feed(engine, sequences[0], tokens(16));
  EXPECT_EQ(code_of([&] { feed(engine, sequences[0], tokens(1)); }), ErrorCode::resource_exhausted);
  EXPECT_EQ(engine.cache().length(sequences[0]), 64);
}

TEST_F(EngineTest, RowsAreThoseAskedFor) {
  const SequenceId a = engine.cache().create(), b = engine.cache().create(), c = engine.cache().create();
  const std::vector<std::int32_t> ids = tokens(4);
  const std::vector<StepInput> batch = {{a, ids, Rows::none}, {b, ids, Rows::all}, {c, ids, Rows::last}};
  EXPECT_EQ(shape_string(engine.step(batch)), "[5, 96]");
  const StepInput none{a, ids, Rows::none};
  EXPECT_EQ(shape_string(engine.step({&none, 1})), "[0, 96]");
  EXPECT_EQ(engine.cache().length(a), 8);
}

TEST_F(EngineTest, ForkedSequencesGoOnFromTheSharedPages) {
  const std::vector<std::int32_t> prompt = tokens(10);
  const SequenceId a = engine.cache().create();
  const std::int32_t next = feed(engine, a, prompt);
  const SequenceId b = engine.cache().fork(a, 10);
  ASSERT_EQ(engine.cache().length(b), 8);
  EXPECT_EQ(feed(engine, b, {prompt.begin() + 8, prompt.end()}), next);
  // Each has its own end.
  const SequenceId alone = engine.cache().create();
  std::vector<std::int32_t> other = prompt;
  other.push_back(7);
  const std::int32_t expected = feed(engine, alone, other);
  EXPECT_EQ(feed(engine, b, {7}), expected);
  feed(engine, a, {11});
  EXPECT_EQ(feed(engine, b, {3}), feed(engine, alone, {3}));
}

TEST_F(EngineTest, DecodingReusesItsPlan) {
  const SequenceId a = engine.cache().create();
  feed(engine, a, tokens(5));
  EXPECT_GT(engine.last_step().plan_seconds, 0.0);
  feed(engine, a, {1});
  feed(engine, a, {1});
  EXPECT_EQ(engine.last_step().plan_seconds, 0.0);
  EXPECT_GT(engine.last_step().launches, 0);
  EXPECT_GE(engine.peak_activation_bytes(), engine.last_step().activation_bytes);
}

TEST_F(EngineTest, OldPlansGiveWay) {
  EngineOptions o = small_options();
  o.max_executables = 2;
  Engine few(model.config, model.weights, o);
  for (int round = 0; round < 2; ++round) {
    for (const std::size_t length : {3, 5, 7}) {
      const SequenceId a = few.cache().create(), b = engine.cache().create();
      EXPECT_EQ(feed(few, a, tokens(length)), feed(engine, b, tokens(length)));
      few.cache().release(a);
      engine.cache().release(b);
    }
  }
}

TEST_F(EngineTest, MeasuredFusionKeepsTheAnswers) {
  EngineOptions o = small_options();
  o.fusion.mode = FusionPolicy::Mode::measured;
  VerdictStore verdicts;
  o.verdicts = &verdicts;
  Engine measured(model.config, model.weights, o);
  const GenerateRequest request{tokens(9), 6};
  EXPECT_EQ(generate_one(measured, request), generate_one(engine, request));
  EXPECT_FALSE(measured.fused_graph(measured.shape_of(StepOutput::ids, 1, 1, 1, 10)).applied.empty());
}

// --- generation

TEST_F(EngineTest, TextsDoNotDependOnTheirNeighbours) {
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < 6; ++i) {
    GenerateRequest r{tokens(3 + 7 * i, "neighbours"), 5 + i};
    if (i % 2 == 1) r.sampling = {.temperature = 0.8f, .top_k = 20, .top_p = 0.95f, .seed = 100 + i};
    requests.push_back(r);
  }
  const std::vector<GenerateResult> together = generate(engine, requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(together[i].tokens, generate_one(engine, requests[i]));
    EXPECT_EQ(together[i].tokens.size(), static_cast<std::size_t>(requests[i].max_new_tokens));
    EXPECT_EQ(together[i].reason, FinishReason::length);
    EXPECT_LE(together[i].seconds_to_first_token, together[i].seconds);
  }
  EXPECT_EQ(engine.cache().num_free_pages(), 24);
}

TEST_F(EngineTest, UnfusedAndFusedGiveTheSameGreedyText) {
  EngineOptions o = EngineOptions::unfused(64);
  o.max_step_tokens = 16;
  Engine unfused(model.config, model.weights, o);
  const GenerateRequest request{tokens(21), 20};
  EXPECT_EQ(generate_one(unfused, request), generate_one(engine, request));
}

TEST_F(EngineTest, SeedsDecideTheDraws) {
  GenerateRequest r{tokens(6), 12, {.temperature = 1.5f, .seed = 1}};
  const std::vector<std::int32_t> first = generate_one(engine, r);
  EXPECT_EQ(generate_one(engine, r), first);
  r.sampling.seed = 2;
  EXPECT_NE(generate_one(engine, r), first);
  r.sampling.top_k = 1;  // the largest is all that is left
  GenerateRequest greedy{tokens(6), 12};
  EXPECT_EQ(generate_one(engine, r), generate_one(engine, greedy));
}

TEST_F(EngineTest, StopIdsAndCallbacksEndATextAndOnlyIt) {
  const GenerateRequest plain{tokens(6), 8};
  const std::vector<std::int32_t> text = generate_one(engine, plain);
  std::vector<GenerateRequest> requests(3, plain);
  requests[1].stop_ids = {text[2]};
  std::vector<std::vector<std::int32_t>> streamed(3);
  const auto results = generate(engine, requests, [&](std::size_t request, std::int32_t token) {
    streamed[request].push_back(token);
    return request != 2 || streamed[request].size() < 4;
  });
  EXPECT_EQ(results[0].tokens, text);
  EXPECT_EQ(results[1].reason, FinishReason::stop);
  EXPECT_EQ(results[1].tokens.back(), text[2]);
  EXPECT_EQ(results[2].reason, FinishReason::cancelled);
  EXPECT_EQ(results[2].tokens.size(), 4u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(streamed[i], results[i].tokens);
}

TEST_F(EngineTest, RequestsThatCannotFitAreRefusedBeforeAnythingStarts) {
  const auto refused = [&](const GenerateRequest& bad) {
    std::vector<GenerateRequest> requests = {{tokens(4), 3}, bad};
    int streamed = 0;
    const ErrorCode code = code_of(
        [&] { generate(engine, requests, [&](std::size_t, std::int32_t) { return ++streamed > 0; }); });
    EXPECT_EQ(streamed, 0);
    EXPECT_EQ(engine.cache().num_free_pages(), 24);
    return code;
  };
  EXPECT_EQ(refused({tokens(60), 10}), ErrorCode::resource_exhausted);
  EXPECT_EQ(refused({tokens(4), std::numeric_limits<std::int64_t>::max()}), ErrorCode::resource_exhausted);
  EXPECT_EQ(refused({{}, 10}), ErrorCode::invalid_argument);
  EXPECT_EQ(refused({{1, 2, 200}, 10}), ErrorCode::invalid_argument);
  EXPECT_EQ(refused({tokens(4), -1}), ErrorCode::invalid_argument);
  EXPECT_EQ(refused({tokens(4), 2, {.temperature = -1.0f}}), ErrorCode::invalid_argument);
  EXPECT_EQ(refused({tokens(4), 2, {.temperature = 1.0f, .top_p = 0.0f}}), ErrorCode::invalid_argument);
  const SequenceId held = engine.cache().create();
  const KvCache::Growth most{held, 4 * 20};
  engine.cache().extend({&most, 1});
  const GenerateRequest large{tokens(20), 10};
  EXPECT_EQ(code_of([&] { generate(engine, {&large, 1}); }), ErrorCode::resource_exhausted);
}

TEST_F(EngineTest, NothingToGenerateIsAnEmptyText) {
  EXPECT_TRUE(generate(engine, {}).empty());
  EXPECT_TRUE(generate_one(engine, {tokens(4), 0}).empty());
}

TEST_F(EngineTest, AnExceptionFromTheCallbackFreesTheCache) {
  const std::vector<GenerateRequest> requests(2, {tokens(9), 10});
  EXPECT_THROW(generate(engine, requests,
                        [](std::size_t, std::int32_t) -> bool { throw std::runtime_error("closed"); }),
               std::runtime_error);
  EXPECT_EQ(engine.cache().num_free_pages(), 24);
}

// The first sequence that a generation takes, if it is the next thing to happen to the cache.
SequenceId next_sequence(Engine& e) {
  const SequenceId s = e.cache().create();
  e.cache().release(s);
  return s + 1;
}

TEST_F(EngineTest, ACallbackThatReleasesTheSequenceEndsInAnError) {
  const SequenceId first = next_sequence(engine);
  const GenerateRequest request{tokens(9), 10};
  const auto release = [&](std::size_t, std::int32_t) {
    if (engine.cache().contains(first)) engine.cache().release(first);
    return true;
  };
  EXPECT_EQ(code_of([&] { generate(engine, {&request, 1}, release); }), ErrorCode::invalid_argument);
  EXPECT_EQ(engine.cache().num_free_pages(), 24);
  // The request's own end may be that moment.
  const GenerateRequest single{tokens(9), 1};
  const SequenceId last = next_sequence(engine);
  generate(engine, {&single, 1}, [&](std::size_t, std::int32_t) {
    engine.cache().release(last);
    return true;
  });
  EXPECT_EQ(engine.cache().num_free_pages(), 24);
}

TEST_F(EngineTest, CallsFromACallbackAreRefusedAndDisturbNothing) {
  const std::vector<GenerateRequest> requests = {{tokens(5, "a"), 6}, {tokens(7, "b"), 6}};
  const std::vector<GenerateResult> expected = generate(engine, requests);
  const StepShape shape = engine.shape_of(StepOutput::ids, 3, 1, 1, 3);
  const std::vector<std::int32_t> ids = tokens(2);
  int refused = 0;
  const auto results = generate(engine, requests, [&](std::size_t, std::int32_t) {
    const SequenceId other = engine.cache().create();
    const StepInput in{other, ids};
    refused += code_of([&] { engine.step({&in, 1}); }) == ErrorCode::invalid_argument;
    refused += code_of([&] { engine.prepare(shape); }) == ErrorCode::invalid_argument;
    refused += code_of([&] { generate(engine, requests); }) == ErrorCode::invalid_argument;
    EXPECT_EQ(engine.cache().length(other), 0);
    engine.cache().release(other);
    return true;
  });
  EXPECT_EQ(refused, 3 * 12);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(results[i].tokens, expected[i].tokens);
  feed(engine, engine.cache().create(), ids);  // free again
}

TEST_F(EngineTest, AnotherThreadIsRefusedMeanwhile) {
  const SequenceId a = engine.cache().create();
  const std::vector<std::int32_t> ids = tokens(2);
  const StepInput in{a, ids};
  const auto from_another_thread = [&](auto call) {
    return std::async(std::launch::async, [&] { return code_of(call); }).get();
  };
  {
    const EngineUse use(engine);
    EXPECT_EQ(from_another_thread([&] { engine.step({&in, 1}); }), ErrorCode::invalid_argument);
    EXPECT_EQ(from_another_thread([&] { EngineUse(engine, EngineUse::Kind::inner); }),
              ErrorCode::invalid_argument);
    const EngineUse inner(engine, EngineUse::Kind::inner);
    EXPECT_EQ(code_of([&] { engine.step({&in, 1}); }), ErrorCode::invalid_argument);
  }
  EXPECT_EQ(engine.cache().length(a), 0);
  std::async(std::launch::async, [&] { engine.step({&in, 1}); }).get();
  EXPECT_EQ(engine.cache().length(a), 2);
}

}  // namespace
}  // namespace kf::tests
