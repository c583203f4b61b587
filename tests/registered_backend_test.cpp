// Backends that are registered at run time: what is taken, which of several serves a device, the CPU's references on another
// device, and tensors of accelerators that DLPack has no name for.

#include <gtest/gtest.h>

#include <map>

#include "case.h"
#include "kf/dlpack.h"
#include "kf/error.h"
#include "kf/host_reference.h"
#include "kf/kf.h"
#include "runner.h"
#include "toy_device.h"

namespace kf {
namespace {

using tests::kToy, tests::make_toy_backend;

Backend toy_of_references() {
  Backend toy = make_toy_backend([](const Kernel&) { return false; });
  toy.kernels = [] { return host_reference_kernels("toy"); };
  return toy;
}

TEST(RegisteredBackend, IsOneOfAllAndSaysWhyItCannotBeUsed) {
  Backend b;
  b.name = "nowhere";
  b.device_type = DeviceType::kunlun;
  b.available = [] { return Support::no("it is nowhere"); };
  b.capabilities = [](int) -> DeviceCaps { throw_invalid("never asked"); };
  b.kernels = [] { return host_reference_kernels("nowhere"); };
  const std::size_t before = all_backends().size();
  const Backend& registered = register_backend(b);
  EXPECT_EQ(all_backends().size(), before + 1);
  EXPECT_EQ(&backend_by_name("nowhere"), &registered);
  DispatcherSet set;
  try {
    set.on({DeviceType::kunlun, 0});
    FAIL() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()), "backend nowhere: it is nowhere");
  }
  EXPECT_THROW(register_backend(b), Error);  // its name is taken
}

TEST(RegisteredBackend, OneThatCouldNotBeCalledIsRefused) {
  const auto refused = [](const auto& change, const std::string& said) {
    Backend b = toy_of_references();
    b.name = "wrong";
    change(b);
    try {
      register_backend(b);
      ADD_FAILURE() << "expected a refusal: " << said;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
      EXPECT_NE(std::string(e.what()).find(said), std::string::npos) << e.what();
    }
  };
  refused([](Backend& b) { b.name = "cpu"; }, "expected a name of its own");
  refused([](Backend& b) { b.name.clear(); }, "expected a name, got none");
  refused([](Backend& b) { b.available = {}; }, "expected a function available");
  refused([](Backend& b) { b.memory.copy = {}; }, "copy and synchronize, or none of them, got 3 of them");
}

TEST(RegisteredBackend, OfSeveralTheFirstThatIsUsableServesADevice) {
  Backend unusable = toy_of_references(), usable = toy_of_references();
  unusable.available = [] { return Support::no("it is broken"); };
  usable.name = "second";
  const Backend* const all[] = {&backend_by_name("cpu"), &unusable, &usable};
  DispatcherSet set({}, all);
  EXPECT_EQ(set.on(kToy).backend().name, "second");
}

TEST(HostReference, ServesEveryOpOnAnotherDevice) {
  const Backend toy = toy_of_references();
  Dispatcher d(toy);
  std::map<Op, int> seen;
  for (const cases::Case& c : cases::all_cases()) {
    if (c.bench || seen[c.op]++ % 97 != 0) continue;
    for (const cases::KernelCheck& k : cases::check_case(c, d))
      if (k.kernel.find("_reference") != std::string::npos) {
        EXPECT_TRUE(k.supported) << c.name << ": " << k.reason;
        EXPECT_TRUE(k.result.ok) << c.name << ": " << k.result.detail;
      }
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(kNumOps));
}

TEST(DlPack, AnAcceleratorWithoutANameIsTheOneThatWasSaid) {
  float data[2];
  std::int64_t shape[] = {2};
  set_dlpack_device(kDLExtDev, DeviceType::ascend);
  const TensorView v = from_dlpack({data, {kDLExtDev, 1}, 1, {kDLFloat, 32, 1}, shape, nullptr, 0});
  EXPECT_EQ(v.device, (Device{DeviceType::ascend, 1}));
  EXPECT_EQ(dlpack_device(v.device).device_type, kDLExtDev);
  EXPECT_EQ(dlpack_device({}).device_type, kDLCPU);
  EXPECT_THROW(dlpack_device({DeviceType::mlu, 0}), Error);
}

// Kunlun's PyTorch shows its tensors as CUDA's, Paddle as oneAPI's: the last that was said is how they are exported.
TEST(DlPack, AnAcceleratorMayStandUnderAnothersName) {
  float data[2];
  std::int64_t shape[] = {2};
  const DLTensor t{data, {kDLCUDA, 1}, 1, {kDLFloat, 32, 1}, shape, nullptr, 0};
  EXPECT_EQ(from_dlpack(t).device, (Device{DeviceType::cuda, 1}));
  set_dlpack_device(kDLCUDA, DeviceType::kunlun);
  EXPECT_EQ(from_dlpack(t).device, (Device{DeviceType::kunlun, 1}));
  EXPECT_EQ(dlpack_device({DeviceType::kunlun, 1}).device_type, kDLCUDA);
  constexpr auto kOneApi = static_cast<DLDeviceType>(14);
  set_dlpack_device(kOneApi, DeviceType::kunlun);
  EXPECT_EQ(dlpack_device({DeviceType::kunlun, 1}).device_type, kOneApi);
  EXPECT_EQ(from_dlpack(t).device, (Device{DeviceType::cuda, 1}));
  EXPECT_THROW(set_dlpack_device(static_cast<DLDeviceType>(77), DeviceType::kunlun), Error);
}

}  // namespace
}  // namespace kf
