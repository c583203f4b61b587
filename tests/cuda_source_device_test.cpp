// Custom kernels as CUDA source on a CUDA device, where there is one.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "case.h"
#include "kf/kf.h"

namespace kf {
namespace {

const Backend* cuda() {
  for (const Backend* b : all_backends())
    if (b->device_type == DeviceType::cuda && b->available()) return b;
  return nullptr;
}

constexpr const char* kSource = R"(
#include <cuda_bf16.h>
#include <cuda_fp16.h>
extern "C" __global__ void silu(const KF_TYPE* x, long long stride, KF_TYPE* out, int rows, int columns) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rows * columns) return;
  float v = float(x[i / columns * stride + i % columns]);
  out[i] = KF_TYPE(v / (1 + expf(-v)));
}
extern "C" __global__ void wrong(const KF_TYPE* x, long long, KF_TYPE* out, int rows, int columns) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows * columns) out[i] = x[i];
}
template <int threads>
__global__ void rms(const KF_TYPE* x, const KF_TYPE* weight, KF_TYPE* out, int columns, float eps) {
  extern __shared__ float sums[];
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += threads) {
    float v = float(x[(long long)blockIdx.x * columns + i]);
    sum += v * v;
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int n = threads / 2; n > 0; n /= 2) {
    if (threadIdx.x < n) sums[threadIdx.x] += sums[threadIdx.x + n];
    __syncthreads();
  }
  float scale = rsqrtf(sums[0] / columns + eps);
  for (int i = threadIdx.x; i < columns; i += threads) {
    long long at = (long long)blockIdx.x * columns + i;
    out[at] = KF_TYPE(float(x[at]) * scale * float(weight[i]));
  }
}
)";

CudaSource silu(const char* entry = "silu") {
  return {.source = kSource,
          .entry = entry,
          .args = {"x", "x.stride[0]", "out", "N", "D"},
          .shape = [](const CallSizes& c) { return LaunchShape::over(c.size("N") * c.size("D")); },
          .dtypes = {DType::f32, DType::bf16}};
}

struct OnDevice {
  explicit OnDevice(Dispatcher& dispatcher) : d(dispatcher), maker("cuda source") {}
  TensorView operator()(TensorView t) {
    storage.push_back(d.allocate(t.nbytes()));
    d.copy(storage.back().get(), t.data, t.nbytes(), CopyDirection::to_device);
    d.synchronize();
    t.data = storage.back().get();
    t.device = d.caps().device;
    return t;
  }
  std::vector<float> floats(const TensorView& t) {
    std::vector<float> host(static_cast<std::size_t>(t.numel()));
    d.copy(host.data(), t.data, t.nbytes(), CopyDirection::to_host);
    d.synchronize();
    return host;
  }
  Dispatcher& d;
  cases::Maker maker;
  std::vector<std::shared_ptr<void>> storage;
};

TEST(AcceleratorsCudaSource, ServesAndIsRecorded) {
  const Backend* const b = cuda();
  if (b == nullptr) GTEST_SKIP() << "no CUDA device here";
  Dispatcher d(*b);
  d.add_kernel(cuda_kernel("custom::silu", Op::activation, silu()));
  OnDevice on(d);
  const TensorView x = on.maker.normal(DType::f32, {37, 100});
  const ActivationParams p{.x = on(x).slice(1, 0, 96), .out = on(on.maker.filled(DType::f32, {37, 96}, 9))};
  const auto plan = d.plan(p, {.graph_safe = true});
  ASSERT_EQ(plan->kernel().name, "custom::silu");
  const auto expect_right = [&] {
    const std::vector<float> out = on.floats(p.out);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double v = x.as<float>()[i / 96 * 100 + i % 96];
      ASSERT_NEAR(out[i], v / (1 + std::exp(-v)), 1e-6 * std::abs(v) + 1e-6) << i;
    }
  };
  d.run(p);
  expect_right();
  const auto recorded = b->recorder.record(0, [&](void* stream) { plan->run(&p, {.stream = stream}); });
  EXPECT_EQ(b->recorder.launches(recorded.get()), 1);
  const std::vector<float> zeros(37 * 96);
  d.copy(p.out.data, zeros.data(), zeros.size() * sizeof(float), CopyDirection::to_device);
  b->recorder.replay(0, recorded.get(), nullptr);
  expect_right();

  const ActivationParams bf16{.x = on(on.maker.normal(DType::bf16, {5, 64})),
                              .out = on(on.maker.normal(DType::bf16, {5, 64}))};
  EXPECT_EQ(d.plan(bf16)->kernel().name, "custom::silu");  // checked on the way
  d.run(bf16);
  d.synchronize();
}

TEST(AcceleratorsCudaSource, TemplatesAndSharedMemory) {
  const Backend* const b = cuda();
  if (b == nullptr) GTEST_SKIP() << "no CUDA device here";
  Dispatcher d(*b);
  CudaSource source{.source = kSource,
                    .entry = "rms<256>",
                    .args = {"x", "weight", "out", "D", "eps"},
                    .shape =
                        [](const CallSizes& c) {
                          return LaunchShape{{c.size("N"), 1, 1}, {256, 1, 1}, 64 << 10};
                        },
                    .dtypes = {DType::f32, DType::bf16, DType::f16}};
  d.add_kernel(cuda_kernel("custom::rms", Op::rms_norm, source));
  OnDevice on(d);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const RmsNormParams p{.x = on(on.maker.normal(dtype, {9, 1000})),
                          .weight = on(on.maker.normal(dtype, {1000})),
                          .out = on(on.maker.normal(dtype, {9, 1000}))};
    EXPECT_EQ(d.plan(p)->kernel().name, "custom::rms");
    d.run(p);
  }
  d.synchronize();
}

TEST(AcceleratorsCudaSource, AWrongOneWritesNothing) {
  const Backend* const b = cuda();
  if (b == nullptr) GTEST_SKIP() << "no CUDA device here";
  Dispatcher d(*b);
  d.add_kernel(cuda_kernel("custom::wrong", Op::activation, silu("wrong")));
  OnDevice on(d);
  const ActivationParams p{.x = on(on.maker.normal(DType::f32, {4, 64})),
                           .out = on(on.maker.filled(DType::f32, {4, 64}, 9))};
  EXPECT_THROW(d.run(p), Error);
  EXPECT_EQ(on.floats(p.out), std::vector<float>(4 * 64, 9.0f));
}

}  // namespace
}  // namespace kf
