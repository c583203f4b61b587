// Every backend that is compiled in besides the CPU's: its table, what it says where there is no such device, and, where there
// is one, its kernels against the CPU's reference.

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "accelerators.h"
#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

std::vector<const Backend*> accelerators() {
  std::vector<const Backend*> found;
  for (const Backend* b : all_backends())
    if (b->device_type != DeviceType::cpu) found.push_back(b);
  return found;
}

TEST(Accelerators, TheirTablesCanBeReadWithoutADevice) {
  for (const Backend* b : accelerators()) {
    std::set<std::string> names;
    for (const Kernel& k : b->kernels()) {
      EXPECT_TRUE(k.name.starts_with(b->name + "::")) << k.name;
      EXPECT_TRUE(names.insert(k.name).second) << k.name << " twice";
      EXPECT_FALSE(k.condition.empty()) << k.name;
    }
    EXPECT_FALSE(names.empty());
  }
}

TEST(Accelerators, OneWithoutADeviceSaysWhy) {
  for (const Backend* b : accelerators()) {
    const Support s = b->available();
    if (s) continue;
    EXPECT_FALSE(s.reason().empty());
    try {
      Dispatcher d(*b);
      FAIL() << "expected a refusal";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::unavailable);
      EXPECT_NE(std::string(e.what()).find(s.reason()), std::string::npos) << e.what();
    }
  }
}

TEST_F(AcceleratorsHere, CasesAgreeWithTheCpusReference) {
  for (const Backend* b : usable_) {
    Dispatcher d(*b);
    std::set<std::string> checked;
    std::map<std::string, std::string> reasons;
    for (const cases::Case& c : cases::all_cases()) {
      if (c.bench || d.kernels(c.op).empty()) continue;
      for (const cases::KernelCheck& k : cases::check_case(c, d)) {
        if (!k.supported) reasons[k.kernel] = k.reason;
        if (!k.supported) continue;
        checked.insert(k.kernel);
        EXPECT_TRUE(k.result.ok) << c.name << " on " << k.kernel << ": " << k.result.detail;
      }
    }
    // But for rows over a library that is not installed here.
    for (const Kernel& k : b->kernels())
      if (reasons[k.name].find("cannot open shared object file") == std::string::npos)
        EXPECT_TRUE(checked.contains(k.name)) << k.name << " served no case: " << reasons[k.name];
  }
}

// Tables that only the device can read: an entry out of range is left out, and reported at the next synchronisation.
TEST_F(AcceleratorsHere, ATableEntryOutOfRangeIsReported) {
  for (const Backend* b : usable_) {
    Dispatcher d(*b);
    cases::Maker m("ids");
    const auto on_device = [&](TensorView t, std::vector<std::shared_ptr<void>>& storage) {
      storage.push_back(d.allocate(t.nbytes()));
      d.copy(storage.back().get(), t.data, t.nbytes(), CopyDirection::to_device);
      t.data = storage.back().get();
      t.device = d.caps().device;
      return t;
    };
    std::vector<std::shared_ptr<void>> storage;
    EmbeddingParams p{.ids = on_device(m.integers(DType::i32, {2, 7, -1}), storage),
                      .table = on_device(m.normal(DType::f32, {5, 64}), storage),
                      .out = on_device(m.filled(DType::f32, {3, 64}, 9), storage)};
    d.synchronize();
    d.run(p);
    try {
      d.synchronize();
      FAIL() << "expected an error";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      EXPECT_NE(std::string(e.what()).find("ids["), std::string::npos) << e.what();
    }
    d.synchronize();  // it is reported once
    std::vector<float> out(3 * 64);
    d.copy(out.data(), p.out.data, out.size() * sizeof(float), CopyDirection::to_host);
    d.synchronize();
    EXPECT_NE(out[0], 9);
    EXPECT_EQ(out[64], 9);
    EXPECT_EQ(out[128], 9);
  }
}

}  // namespace
}  // namespace kf
