// The model on a device: what steps give there is what they give on the CPU, whatever the batch and however prompts are fed;
// launches are recorded and replayed where the device can. On a device made of the CPU's kernels, and on every accelerator
// of this machine.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "accelerators.h"
#include "kf/engine.h"
#include "kf/error.h"
#include "kf/generate.h"
#include "tiny_model.h"
#include "toy_device.h"

namespace kf::tests {
namespace {

const Backend& toy() {
  static const Backend b = [] {
    Backend all = make_toy_backend([](const Kernel&) { return true; });
    all.recorder = toy_recorder();
    return all;
  }();
  return b;
}

EngineOptions small_options() {
  EngineOptions o;
  o.fusion.mode = FusionPolicy::Mode::all;
  o.max_seq_len = 64;
  o.max_batch_size = 3;
  o.max_step_tokens = 16;
  o.cache = {.page_size = 4, .num_pages = 48};
  return o;
}

EngineOptions on(const Backend& backend, EngineOptions o) {
  static const Backend* backends[2] = {&backend_by_name("cpu"), nullptr};
  backends[1] = &backend;
  o.device = {backend.device_type, 0};
  o.backends = backends;
  return o;
}

// Prompts of several lengths, one of them longer than a step takes; more of them than a batch takes.
std::vector<GenerateRequest> requests(const ModelConfig& config) {
  std::vector<GenerateRequest> all;
  for (const std::size_t length : {1, 37, 5, 11}) {
    GenerateRequest r;
    r.prompt = random_tokens(config, length, "on a device " + std::to_string(length));
    r.max_new_tokens = 12;
    all.push_back(std::move(r));
  }
  return all;
}

std::vector<std::vector<std::int32_t>> texts(Engine& engine, const std::vector<GenerateRequest>& requests) {
  std::vector<std::vector<std::int32_t>> all;
  for (GenerateResult& r : generate(engine, requests)) all.push_back(std::move(r.tokens));
  return all;
}

template <class F>
std::string error_of(ErrorCode code, F&& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

class EngineOnDevice : public ::testing::Test {
 protected:
  const TinyModel model = make_tiny_model(Architecture::llama);
};

TEST_F(EngineOnDevice, TextsAreTheCpus) {
  for (const Architecture architecture : {Architecture::llama, Architecture::qwen3}) {
    const TinyModel m = make_tiny_model(architecture);
    Engine cpu(m.config, m.weights, small_options());
    const auto expected = texts(cpu, requests(m.config));
    for (const bool replay : {false, true}) {
      EngineOptions o = small_options();
      o.replay = replay;
      Engine device(m.config, m.weights, on(toy(), o));
      EXPECT_EQ(texts(device, requests(m.config)), expected);
      EXPECT_EQ(device.last_step().replayed, replay);
    }
  }
}

TEST_F(EngineOnDevice, SampledTextsAndTheBaselineToo) {
  std::vector<GenerateRequest> sampled = requests(model.config);
  for (GenerateRequest& r : sampled) r.sampling = {.temperature = 0.8f, .top_k = 20, .seed = 3};
  for (EngineOptions o : {small_options(), EngineOptions::unfused(64)}) {
    Engine cpu(model.config, model.weights, o), device(model.config, model.weights, on(toy(), o));
    EXPECT_EQ(texts(device, sampled), texts(cpu, sampled));
  }
}

TEST_F(EngineOnDevice, LogitsAreCapped) {
  ModelConfig capped = model.config;
  capped.logit_softcap = 0.5f;
  Engine plain(model.config, model.weights, small_options()), cpu(capped, model.weights, small_options());
  Engine device(capped, model.weights, on(toy(), small_options()));
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 9, "capped");
  const StepInput a{plain.cache().create(), tokens, Rows::all}, b{cpu.cache().create(), tokens, Rows::all},
      c{device.cache().create(), tokens, Rows::all};
  const TensorView expected = plain.step({&a, 1}), on_host = cpu.step({&b, 1}), got = device.step({&c, 1});
  ASSERT_EQ(got.device, Device{});
  for (std::int64_t i = 0; i < expected.numel(); ++i) {
    EXPECT_NEAR(on_host.as<float>()[i], 0.5f * std::tanh(expected.as<float>()[i] / 0.5f), 1e-5f);
    ASSERT_NEAR(got.as<float>()[i], on_host.as<float>()[i], 1e-5f);
  }
  std::vector<GenerateRequest> sampled = requests(model.config);
  for (GenerateRequest& r : sampled) r.sampling = {.temperature = 0.8f, .top_k = 20, .seed = 3};
  const auto texts_of_cap = texts(cpu, sampled);
  EXPECT_EQ(texts(device, sampled), texts_of_cap);
  EXPECT_NE(texts(plain, sampled), texts_of_cap);
}

TEST_F(EngineOnDevice, LogitsComeBackToTheHost) {
  Engine cpu(model.config, model.weights, small_options());
  Engine device(model.config, model.weights, on(toy(), small_options()));
  const std::vector<std::int32_t> tokens = random_tokens(model.config, 9, "logits");
  for (const Rows rows : {Rows::all, Rows::none, Rows::last}) {
    const StepInput a{cpu.cache().create(), tokens, rows}, b{device.cache().create(), tokens, rows};
    const TensorView expected = cpu.step({&a, 1}), got = device.step({&b, 1});
    ASSERT_EQ(got.device, Device{});
    ASSERT_TRUE(got.same_layout(expected));
    // The device's kernels are others, which sum in another order.
    for (std::int64_t i = 0; i < got.numel(); ++i)
      ASSERT_NEAR(got.as<float>()[i], expected.as<float>()[i], 1e-5);
  }
}

TEST_F(EngineOnDevice, MemoryIsGivenBack) {
  const int before = toy_counts().live_allocations;
  {
    Engine device(model.config, model.weights, on(toy(), small_options()));
    texts(device, requests(model.config));
    EXPECT_GT(toy_counts().live_allocations, before);
  }
  EXPECT_EQ(toy_counts().live_allocations, before);
}

TEST_F(EngineOnDevice, AStepIsOneCopyThereAndFromTheSecondOnReplays) {
  Engine device(model.config, model.weights, on(toy(), small_options()));
  const SequenceId s = device.cache().create();
  const std::vector<std::int32_t> token = {7};
  const StepInput in{s, token};
  for (int i = 0; i < 5; ++i) {
    const int copies = toy_counts().copies_to_device, replays = toy_counts().replays;
    device.step({&in, 1}, StepOutput::ids);
    EXPECT_EQ(toy_counts().copies_to_device, copies + 1);
    const bool replayed = i == 1 || i == 2 || i == 3;  // the fifth token takes a second page: another shape
    EXPECT_EQ(toy_counts().replays, replays + (replayed ? 1 : 0)) << i;
    EXPECT_EQ(device.last_step().replayed, replayed) << i;
    EXPECT_GT(device.last_step().launches, 0);
  }
}

TEST_F(EngineOnDevice, BatchesOfSingleTokensArePaddedWhereTheyAreReplayed) {
  EngineOptions o = small_options();
  o.max_batch_size = 6;
  Engine cpu(model.config, model.weights, o), device(model.config, model.weights, on(toy(), o));
  EXPECT_EQ(device.shape_of(StepOutput::ids, 3, 3, 3, 8).num_tokens, 4);
  EXPECT_EQ(device.shape_of(StepOutput::ids, 5, 5, 5, 8).batch_size, 6);
  EXPECT_EQ(device.shape_of(StepOutput::ids, 3, 3, 2, 8).num_tokens, 3);
  EXPECT_EQ(cpu.shape_of(StepOutput::ids, 3, 3, 3, 8).num_tokens, 3);
  std::map<Engine*, std::vector<SequenceId>> sequences;
  for (Engine* e : {&cpu, &device})
    for (int i = 0; i < 3; ++i) sequences[e].push_back(e->cache().create());
  for (std::int32_t step = 0; step < 4; ++step) {
    std::vector<std::vector<std::int32_t>> ids;
    for (Engine* e : {&cpu, &device}) {
      const std::int32_t tokens[] = {step, step + 20, step + 40};
      std::vector<StepInput> batch;
      for (int i = 0; i < 3; ++i) batch.push_back({sequences[e][i], {tokens + i, 1}});
      const TensorView out = e->step(batch, StepOutput::ids);
      ASSERT_EQ(out.numel(), 3);
      ids.emplace_back(out.as<std::int32_t>(), out.as<std::int32_t>() + 3);
      EXPECT_EQ(e->last_step().num_tokens, 3);
    }
    EXPECT_EQ(ids[0], ids[1]);
  }
}

TEST_F(EngineOnDevice, DecodingFeedsItsOwnChoices) {
  EngineOptions o = small_options();
  o.cache.page_size = 4;
  const Backend& cpu_backend = backend_by_name("cpu");
  for (const Backend* b : {&cpu_backend, &toy()}) {
    Engine one(model.config, model.weights, small_options());
    Engine many(model.config, model.weights, b == &toy() ? on(*b, o) : o);
    std::vector<StepInput> of_one, of_many;
    std::vector<std::int32_t> last = {5, 50};
    for (const std::int32_t& token : last) {
      of_one.push_back({one.cache().create(), {&token, 1}});
      of_many.push_back({many.cache().create(), {&token, 1}});
    }
    // More steps than are enqueued at once, over several pages.
    const TensorView ids = many.decode(of_many, 37);
    ASSERT_EQ(shape_string(ids), "[37, 2]");
    const std::vector<std::int32_t> made(ids.as<std::int32_t>(), ids.as<std::int32_t>() + ids.numel());
    EXPECT_EQ(many.last_step().num_tokens, 74);
    EXPECT_EQ(many.cache().length(of_many[0].sequence), 37);
    for (std::size_t i = 0; i < 37; ++i) {
      const TensorView next = one.step(of_one, StepOutput::ids);
      last.assign(next.as<std::int32_t>(), next.as<std::int32_t>() + 2);
      EXPECT_EQ(std::vector(made.begin() + 2 * i, made.begin() + 2 * i + 2), last) << i;
    }
    EXPECT_EQ(many.decode(of_many, 0).numel(), 0);
    EXPECT_EQ(many.decode({}, 3).numel(), 0);
    error_of(ErrorCode::resource_exhausted, [&] { many.decode(of_many, 28); });
    error_of(ErrorCode::invalid_argument, [&] { many.decode(of_many, -1); });
    const std::vector<std::int32_t> two = {1, 2};
    const StepInput prompt{of_many[0].sequence, two},
        silent{of_many[0].sequence, {two.data(), 1}, Rows::none};
    error_of(ErrorCode::invalid_argument, [&] { many.decode({&prompt, 1}, 2); });
    error_of(ErrorCode::invalid_argument, [&] { many.decode({&silent, 1}, 2); });
    EXPECT_EQ(many.cache().length(of_many[0].sequence), 37);
  }
}

TEST_F(EngineOnDevice, TextsEndAtTheirStopTokens) {
  std::vector<GenerateRequest> all = requests(model.config);
  Engine cpu(model.config, model.weights, small_options());
  const auto whole = texts(cpu, all);
  for (std::size_t i = 0; i < all.size(); ++i) all[i].stop_ids = {whole[i][i + 2]};
  const auto expected = texts(cpu, all);
  Engine device(model.config, model.weights, on(toy(), small_options()));
  int told = 0;
  std::size_t length = 0;
  const auto got = generate(device, all, [&](std::size_t, std::int32_t) { return ++told > 0; });
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(got[i].tokens, expected[i]);
    length += expected[i].size();
  }
  EXPECT_EQ(static_cast<std::size_t>(told), length);
  EXPECT_EQ(device.cache().num_free_pages(), device.options().cache.num_pages);
}

TEST_F(EngineOnDevice, WhatIsNotReplayedSaysWhy) {
  const auto reason = [&](const Backend& b, const EngineOptions& o) {
    Engine device(model.config, model.weights, on(b, o));
    const Support s = device.replayable(device.shape_of(StepOutput::ids, 1, 1, 1, 1));
    texts(device, requests(model.config));
    EXPECT_EQ(device.last_step().replayed, static_cast<bool>(s));
    return s.reason();
  };
  EngineOptions o = small_options();
  EXPECT_EQ(reason(toy(), o), "");
  Counters counters;
  o.sink = &counters;
  EXPECT_EQ(reason(toy(), o), "a sink is told of every call");
  EXPECT_GT(counters.launches(), 0);
  o = small_options();
  o.replay = false;
  EXPECT_EQ(reason(toy(), o), "EngineOptions::replay is off");
  Backend plain = toy();
  plain.recorder = {};
  EXPECT_EQ(reason(plain, small_options()), "backend toy records no launches");
  Backend unsafe = toy();
  unsafe.kernels = [] {
    std::vector<Kernel> all = toy().kernels();
    for (Kernel& k : all)
      if (k.op == Op::gated_ffn) k.graph_safe = false;
    return all;
  };
  const std::string why = reason(unsafe, small_options());
  EXPECT_TRUE(why.starts_with("layers.0.") && why.ends_with("may not be recorded")) << why;
}

TEST_F(EngineOnDevice, WhatCannotBeThereIsRefused) {
  EngineOptions o = small_options();
  o.device = {DeviceType::kunlun, 0};
  const std::string none = error_of(ErrorCode::unavailable, [&] { Engine(model.config, model.weights, o); });
  EXPECT_NE(none.find("no backend for tensors on kunlun:0 is compiled in"), std::string::npos) << none;
  o = on(toy(), small_options());
  o.device.index = 1;
  error_of(ErrorCode::unavailable, [&] { Engine(model.config, model.weights, o); });
  NamedTensors elsewhere = model.weights;
  elsewhere["model.norm.weight"].device = {DeviceType::ascend, 0};
  const std::string where = error_of(ErrorCode::invalid_argument,
                                     [&] { Engine(model.config, elsewhere, on(toy(), small_options())); });
  EXPECT_NE(where.find("model.norm.weight: expected it on the host or on mlu:0, got ascend:0"),
            std::string::npos)
      << where;
  EXPECT_THROW(Engine(model.config, elsewhere, small_options()), Error);
}

TEST(DeviceNames, AreReadAndRefused) {
  EXPECT_EQ(parse_device("cuda:3"), (Device{DeviceType::cuda, 3}));
  EXPECT_EQ(parse_device("cuda"), (Device{DeviceType::cuda, 0}));
  EXPECT_EQ(parse_device(to_string(Device{})), Device{});
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", ":0", "CUDA"})
    error_of(ErrorCode::invalid_argument, [&] { parse_device(name); });
}

// Of the devices of this machine: greedy texts in f32 are the CPU's, replayed and not.
TEST_F(AcceleratorsHere, ModelsGiveTheCpusTexts) {
  for (const Backend* b : usable_) {
    for (const Architecture architecture : {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
      const TinyModel m = make_tiny_model(architecture);
      Engine cpu(m.config, m.weights, small_options());
      const auto expected = texts(cpu, requests(m.config));
      for (const bool replay : {false, true}) {
        EngineOptions o = small_options();
        o.replay = replay;
        Engine device(m.config, m.weights, on(*b, o));
        EXPECT_EQ(texts(device, requests(m.config)), expected) << architecture_name(architecture);
        EXPECT_EQ(device.last_step().replayed, replay)
            << device.replayable(device.shape_of(StepOutput::ids, 1, 1, 1, 1)).reason();
      }
    }
  }
}

TEST_F(AcceleratorsHere, FusionsOfModelsAreMeasuredThere) {
  for (const Backend* b : usable_) {
    const TinyModel m = make_tiny_model(Architecture::llama);
    EngineOptions o = small_options();
    o.fusion.mode = FusionPolicy::Mode::measured;
    Engine cpu(m.config, m.weights, small_options()), device(m.config, m.weights, on(*b, o));
    const StepShape shape = device.shape_of(StepOutput::ids, 1, 1, 1, 1);
    int timed = 0;
    for (const Applied& a : device.fused_graph(shape).applied) {
      EXPECT_EQ(a.reason.find("could not be measured"), std::string::npos) << a.rule << ": " << a.reason;
      timed += a.reason.find("ms unfused") != std::string::npos;
    }
    EXPECT_GT(timed, 0);
    const std::vector<std::int32_t> token = {7};
    const StepInput on_cpu{cpu.cache().create(), token}, on_device{device.cache().create(), token};
    const TensorView expected = cpu.decode({&on_cpu, 1}, 4), got = device.decode({&on_device, 1}, 4);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(got.as<std::int32_t>()[i], expected.as<std::int32_t>()[i]);
  }
}

// In bf16: logits within what its rounding allows, of prompts in chunks and of single tokens.
TEST_F(AcceleratorsHere, ModelsInBf16GiveLogitsNearTheReference) {
  for (const Backend* b : usable_) {
    const TinyModel m = make_tiny_model(Architecture::llama, {.matrix_dtype = DType::bf16});
    EngineOptions o = small_options();
    o.activation_dtype = o.cache.dtype = DType::bf16;
    Engine device(m.config, m.weights, on(*b, o));
    const std::vector<std::int32_t> tokens = random_tokens(m.config, 29, "bf16");
    const auto expected = reference_logits(m, tokens);
    double largest = 0, worst = 0;
    const SequenceId s = device.cache().create();
    std::size_t begin = 0;
    for (const std::size_t count : {11, 1, 1, 1, 15}) {
      const StepInput in{s, std::span(tokens).subspan(begin, count), Rows::all};
      const TensorView got = device.step({&in, 1});
      for (std::size_t t = 0; t < count; ++t)
        for (std::int64_t i = 0; i < got.dim(1); ++i) {
          const double exact = expected[begin + t][static_cast<std::size_t>(i)];
          largest = std::max(largest, std::abs(exact));
          worst = std::max(
              worst, std::abs(exact - cases::element(got, static_cast<std::int64_t>(t) * got.dim(1) + i)));
        }
      begin += count;
    }
    // About 20 results a layer are rounded to bf16 on the way to a logit, each by at most one roundoff; sums are in f32.
    EXPECT_LE(worst,
              largest * 20 * static_cast<double>(m.config.num_layers) * cases::unit_roundoff(DType::bf16));
  }
}

}  // namespace
}  // namespace kf::tests
