// Several callers at once on CUDA devices: threads with streams of their own, and several devices.

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <thread>

#include "case.h"
#include "jit/driver.h"
#include "kf/engine.h"
#include "kf/generate.h"
#include "kf/kf.h"
#include "runner.h"
#include "tiny_model.h"

namespace kf {
namespace {

const Backend* cuda() {
  for (const Backend* b : all_backends())
    if (b->device_type == DeviceType::cuda && b->available()) return b;
  return nullptr;
}

int device_count() {
  int count = 0;
  for (const Backend* const b = cuda(); b != nullptr; ++count) {
    try {
      b->capabilities(count);
    } catch (const Error&) {
      break;
    }
  }
  return count;
}

// A stream of the driver's, which does not wait for the default one.
class Stream {
 public:
  explicit Stream(int device) {
    const jit::Driver& d = jit::driver();
    const auto create = reinterpret_cast<int (*)(void**, unsigned)>(d.library.find("cuStreamCreate"));
    int handle = 0;
    d.check(d.init(0), "cuInit");
    d.check(d.device_get(&handle, device), "cuDeviceGet");
    d.check(d.retain_context(&context_, handle), "cuDevicePrimaryCtxRetain");
    d.check(d.push_context(context_), "cuCtxPushCurrent");
    d.check(create(&stream_, 1), "cuStreamCreate");
    jit::Driver::Context popped = nullptr;
    d.pop_context(&popped);
  }
  ~Stream() {
    const auto destroy = reinterpret_cast<int (*)(void*)>(jit::driver().library.find("cuStreamDestroy_v2"));
    destroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator void*() const { return stream_; }

 private:
  jit::Driver::Context context_ = nullptr;
  void* stream_ = nullptr;
};

// A case's call over memory of the device that only it uses.
class Call {
 public:
  Call(const cases::Case& c, Dispatcher& d, void* stream) : op_(c.op), d_(d), stream_(stream) {
    instance_ = cases::instantiate(c);
    params_ = instance_.params;
    for (const Slot& s : slots_of(op_, params_.data())) {
      TensorView& t = *s.tensor;
      if (!t.present()) continue;
      const std::size_t bytes = t.nbytes();
      storage_.push_back(d.allocate(bytes, {stream}));
      if (t.data != nullptr) d.copy(storage_.back().get(), t.data, bytes, CopyDirection::to_device, {stream});
      t.data = storage_.back().get();
      t.device = d.caps().device;
      if (s.role != Role::in) outputs_.push_back(t);
    }
    d.synchronize({stream});
  }
  // The outputs of one run, as bytes.
  std::string run() {
    d_.run(op_, params_.data(), kSelection, {stream_});
    std::string bytes;
    for (const TensorView& t : outputs_) {
      std::string part(t.nbytes(), '\0');
      d_.copy(part.data(), t.data, part.size(), CopyDirection::to_host, {stream_});
      d_.synchronize({stream_});
      bytes += part;
    }
    return bytes;
  }
  static inline const Selection kSelection{.allow_fallback = true};

 private:
  Op op_;
  Dispatcher& d_;
  void* stream_;
  cases::Instance instance_;
  AnyParams params_;
  std::vector<std::shared_ptr<void>> storage_;
  std::vector<TensorView> outputs_;
};

// A few of each op: those whose operands lie without gaps and are not written in place.
std::vector<const cases::Case*> some_cases(Dispatcher& d) {
  std::map<Op, int> seen;
  std::vector<const cases::Case*> some;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || d.kernels(c.op).empty() || seen[c.op] >= 4) continue;
    cases::Instance i = cases::instantiate(c);
    bool plain = true;
    for (const Slot& s : slots_of(c.op, i.params.data()))
      plain = plain && s.role != Role::inout &&
              (!s.tensor->present() || (s.tensor->is_contiguous() && s.tensor->numel() > 0));
    if (!plain) continue;
    try {
      d.plan(
          c.op,
          [&] {
            for (const Slot& s : slots_of(c.op, i.params.data())) s.tensor->device = d.caps().device;
            return i.params.data();
          }(),
          Call::kSelection);
    } catch (const Error&) {
      continue;  // no kernel serves it
    }
    ++seen[c.op];
    some.push_back(&c);
  }
  return some;
}

// What a thread gives for each case over and over; the first difference from what was expected.
std::string difference(Dispatcher& d, const std::vector<const cases::Case*>& some,
                       const std::vector<std::string>& expected, void* stream, std::size_t first) {
  std::vector<std::unique_ptr<Call>> calls;
  for (const cases::Case* c : some) calls.push_back(std::make_unique<Call>(*c, d, stream));
  for (int round = 0; round < 5; ++round)
    for (std::size_t n = 0; n < calls.size(); ++n) {
      const std::size_t i = (first + n) % calls.size();
      if (calls[i]->run() != expected[i]) return some[i]->name;
    }
  return {};
}

std::vector<std::string> expected_of(Dispatcher& d, const std::vector<const cases::Case*>& some) {
  std::vector<std::string> all;
  for (const cases::Case* c : some) all.push_back(Call(*c, d, nullptr).run());
  return all;
}

TEST(AcceleratorsAtOnce, TwoThreadsWithStreamsOfTheirOwn) {
  const Backend* const b = cuda();
  if (b == nullptr) GTEST_SKIP() << "no CUDA device here";
  Dispatcher d(*b);
  const auto some = some_cases(d);
  ASSERT_GT(some.size(), 40u);
  const std::vector<std::string> expected = expected_of(d, some);
  const Stream streams[2]{Stream(0), Stream(0)};
  std::string wrong[2];
  std::thread threads[2];
  for (std::size_t i = 0; i < 2; ++i)
    threads[i] =
        std::thread([&, i] { wrong[i] = difference(d, some, expected, streams[i], i * some.size() / 2); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong[0], "");
  EXPECT_EQ(wrong[1], "");
}

TEST(AcceleratorsAtOnce, TwoDevices) {
  const Backend* const b = cuda();
  if (device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices here: " << device_count();
  Dispatcher devices[2]{Dispatcher(*b, {.device_index = 0}), Dispatcher(*b, {.device_index = 1})};
  const auto some = some_cases(devices[0]);
  const std::vector<std::string> expected = expected_of(devices[0], some);
  const Stream streams[2]{Stream(0), Stream(1)};
  std::string wrong[2];
  std::thread threads[2];
  for (std::size_t i = 0; i < 2; ++i)
    threads[i] = std::thread([&, i] { wrong[i] = difference(devices[i], some, expected, streams[i], 0); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong[0], "");
  EXPECT_EQ(wrong[1], "");
  // From one thread, whose current device is the first, by the tensors' device.
  DispatcherSet set;
  Dispatcher& second = set.on({DeviceType::cuda, 1});
  EXPECT_EQ(difference(second, some, expected, nullptr, 0), "");
}

TEST(AcceleratorsAtOnce, TheSecondDevicesCasesAgreeWithTheCpu) {
  const Backend* const b = cuda();
  if (device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices here: " << device_count();
  Dispatcher d(*b, {.device_index = 1});
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || d.kernels(c.op).empty() || seen[c.op]++ % 20 != 0) continue;
    for (const cases::KernelCheck& k : cases::check_case(c, d))
      EXPECT_TRUE(!k.supported || k.result.ok) << c.name << " on " << k.kernel << ": " << k.result.detail;
  }
}

TEST(AcceleratorsAtOnce, AFaultIsItsDevices) {
  const Backend* const b = cuda();
  if (device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices here: " << device_count();
  Dispatcher first(*b), second(*b, {.device_index = 1});
  cases::Maker m("fault");
  std::vector<std::shared_ptr<void>> storage;
  const auto there = [&](TensorView t) {
    storage.push_back(second.allocate(t.nbytes()));
    second.copy(storage.back().get(), t.data, t.nbytes(), CopyDirection::to_device);
    t.data = storage.back().get();
    t.device = second.caps().device;
    return t;
  };
  const EmbeddingParams p{.ids = there(m.integers(DType::i32, {1, 9})),
                          .table = there(m.normal(DType::f32, {5, 64})),
                          .out = there(m.filled(DType::f32, {2, 64}, 9))};
  second.synchronize();
  second.run(p);
  EXPECT_NO_THROW(first.synchronize());
  EXPECT_THROW(second.synchronize(), Error);
  EXPECT_NO_THROW(second.synchronize());
  // Operands of two devices.
  EmbeddingParams mixed = p;
  mixed.table.device.index = 0;
  EXPECT_THROW(second.run(mixed), Error);
}

TEST(AcceleratorsAtOnce, EnginesOnTwoDevices) {
  const Backend* const b = cuda();
  if (device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices here: " << device_count();
  const tests::TinyModel model = tests::make_tiny_model(Architecture::llama);
  GenerateRequest request{};
  request.prompt = tests::random_tokens(model.config, 11, "two devices");
  request.max_new_tokens = 12;
  const auto text = [&](Device device) {
    EngineOptions o;
    o.fusion.mode = FusionPolicy::Mode::all;
    o.max_seq_len = 64;
    o.max_batch_size = 3;
    o.max_step_tokens = 16;
    o.cache = {.page_size = 4, .num_pages = 48};
    o.device = device;
    Engine engine(model.config, model.weights, o);
    return generate(engine, std::span(&request, 1)).front().tokens;
  };
  const auto expected = text({});
  std::vector<std::int32_t> got[2];
  std::thread threads[2];
  for (int i = 0; i < 2; ++i) threads[i] = std::thread([&, i] { got[i] = text({DeviceType::cuda, i}); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(got[0], expected);
  EXPECT_EQ(got[1], expected);
}

}  // namespace
}  // namespace kf
