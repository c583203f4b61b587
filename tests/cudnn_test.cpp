// Attention by cuDNN, which no call takes by default: the cases that it accepts, where there is a device and cuDNN.

#include <gtest/gtest.h>

#include "accelerators.h"
#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

class AcceleratorsCudnn : public AcceleratorsHere {};

TEST_F(AcceleratorsCudnn, CasesAgreeWithTheCpusReference) {
  for (const Backend* b : usable_) {
    if (b->device_type != DeviceType::cuda) continue;
    Backend alone = *b;
    alone.kernels = [b] {
      std::vector<Kernel> rows;
      for (Kernel& k : b->kernels())
        if (k.name == "cuda::attention_cudnn") rows.push_back(std::move(k));
      return rows;
    };
    Dispatcher d(alone);
    int accepted = 0;
    std::string reason;
    for (const cases::Case& c : cases::all_cases()) {
      if (c.bench || c.op != Op::attention) continue;
      for (const cases::KernelCheck& k : cases::check_case(c, d)) {
        if (k.kernel != "cuda::attention_cudnn") continue;
        accepted += k.supported;
        if (!k.supported) reason = k.reason;
        EXPECT_TRUE(!k.supported || k.result.ok) << c.name << ": " << k.result.detail;
      }
    }
    if (reason.find("cannot open shared object file") != std::string::npos) GTEST_SKIP() << reason;
    EXPECT_GT(accepted, 5);
    RecordProperty("accepted", accepted);
  }
}

}  // namespace
}  // namespace kf
