// Custom kernels as CUDA source, over stand-ins for NVRTC, the driver and the device.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "case.h"
#include "jit/compile.h"
#include "jit/cuda_kernel.h"
#include "kf/kf.h"
#include "toy_device.h"

namespace kf {
namespace {

namespace fs = std::filesystem;

// As tests/stand_ins/cuda.cpp has it.
struct Launched {
  unsigned grid[3], block[3], shared;
  void* stream;
  int compilations, launches, loaded, current_depth;
};

const jit::Nvrtc& nvrtc() {
  static const jit::Nvrtc n({KF_STAND_IN_CUDA});
  return n;
}
const jit::Driver& driver() {
  static const jit::Driver d({KF_STAND_IN_CUDA});
  return d;
}
Launched& state() { return *reinterpret_cast<Launched* (*)()>(nvrtc().library.find("kf_stand_in_state"))(); }

class CudaSourceTest : public testing::Test {
 protected:
  CudaSourceTest() : folder_((fs::temp_directory_path() / "kf_cuda_XXXXXX").string()) {
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    EXPECT_EQ(nvrtc().problem(), "");
    EXPECT_EQ(driver().problem(), "");
  }
  ~CudaSourceTest() override { fs::remove_all(folder_); }

  static CudaSource silu(const std::string& entry = "silu") {
    return {
        .source = "extern \"C\" __global__ void " + entry + "(const float* x, float* out, long long n) {}",
        .entry = entry,
        .args = {"x", "out", "x.numel"},
        .shape = [](const CallSizes& call) { return LaunchShape::over(call.size("x.numel"), 64); }};
  }
  Kernel row(CudaSource source, const char* name = "custom::mine") const {
    return jit::cuda_kernel(name, Op::activation, std::move(source), {}, nvrtc(), driver(), folder_);
  }
  CompiledCuda compile(const CudaSource& source, const std::string& architecture = "sm_90",
                       DType dtype = DType::f32) const {
    return jit::compile("custom::mine", source, architecture, dtype, nvrtc(), folder_);
  }

  std::string folder_;
};

// A toy that says it is a CUDA device.
const Backend& cuda_toy() {
  static const Backend toy = [] {
    Backend b = tests::make_toy_backend(
        [](const Kernel& k) { return (k.families & kVanilla) && k.op == Op::activation; });
    b.device_type = DeviceType::cuda;
    b.capabilities = [](int index) {
      DeviceCaps caps = backend_by_name("cpu").capabilities(0);
      caps.device = {DeviceType::cuda, index};
      caps.isa = "sm_90";
      return caps;
    };
    b.kernels = [kernels = b.kernels] {
      std::vector<Kernel> all = kernels();
      for (Kernel& k : all) k.device_type = DeviceType::cuda;
      return all;
    };
    return b;
  }();
  return toy;
}

// silu of a generated x on the toy.
struct Call {
  Call(Dispatcher& dispatcher, std::int64_t rows, std::int64_t columns)
      : d(dispatcher), maker("cuda source") {
    x = maker.normal(DType::f32, {rows, columns});
    const TensorView marks = maker.filled(DType::f32, {rows, columns}, 9);
    p.x = on_device(x);
    p.out = on_device(marks);
    p.kind = Activation::silu;
  }
  TensorView on_device(TensorView t) {
    storage.push_back(d.allocate(t.nbytes()));
    d.copy(storage.back().get(), t.data, t.nbytes(), CopyDirection::to_device);
    t.data = storage.back().get();
    t.device = d.caps().device;
    return t;
  }
  double error() {
    std::vector<float> out(static_cast<std::size_t>(x.numel()));
    d.copy(out.data(), p.out.data, x.nbytes(), CopyDirection::to_host);
    double largest = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double v = x.as<float>()[i];
      largest = std::max(largest, std::abs(out[i] - v / (1 + std::exp(-v))));
    }
    return largest;
  }
  Dispatcher& d;
  cases::Maker maker;
  TensorView x;
  std::vector<std::shared_ptr<void>> storage;
  ActivationParams p;
};

std::string reason(Dispatcher& d, const ActivationParams& p) {
  for (const Explained& e : d.explain(p))
    if (e.kernel == "custom::mine") return e.reason;
  return "no such row";
}

std::string what(const std::function<void()>& f, ErrorCode code = ErrorCode::invalid_argument) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  return "no error";
}

TEST_F(CudaSourceTest, ServesCallsOfItsOp) {
  Dispatcher d(cuda_toy());
  d.add_kernel(row(silu()));
  const int compiled = state().compilations;
  int queue = 0;
  for (const std::int64_t rows : {3, 5}) {
    Call call(d, rows, 40);
    const auto plan = d.plan(call.p);
    EXPECT_EQ(plan->kernel().name, "custom::mine");
    EXPECT_TRUE(plan->graph_safe());
    d.run(call.p, {.stream = &queue});
    EXPECT_LT(call.error(), 1e-6);
    EXPECT_EQ(state().grid[0], static_cast<unsigned>((rows * 40 + 63) / 64));
    EXPECT_EQ(state().block[0], 64u);
    EXPECT_EQ(state().stream, &queue);
    EXPECT_EQ(state().current_depth, 1) << "the context is the thread's during a launch";
  }
  EXPECT_EQ(state().compilations, compiled + 1) << "one function serves all layouts";
  Call empty(d, 0, 40);
  const int launches = state().launches;
  d.run(empty.p);
  EXPECT_EQ(state().launches, launches);
}

TEST_F(CudaSourceTest, AWrongOneIsFoundBeforeItServes) {
  Dispatcher d(cuda_toy());
  d.add_kernel(row(silu("wrong")));
  Call call(d, 2, 8);
  const std::string error = what([&] { d.run(call.p); });
  EXPECT_NE(error.find("custom::mine: its results differ from toy::activation"), std::string::npos) << error;
  std::vector<float> out(16);
  d.copy(out.data(), call.p.out.data, 64, CopyDirection::to_host);
  EXPECT_EQ(out, std::vector<float>(16, 9.0f)) << "nothing was written";
}

TEST_F(CudaSourceTest, DeclinesWhatItDoesNotName) {
  Dispatcher d(cuda_toy());
  d.add_kernel(row(silu()));
  Call call(d, 4, 8);
  ActivationParams p = call.p;
  p.kind = Activation::relu;
  EXPECT_EQ(reason(d, p), "kind is not at its default: no entry of args names it");

  p = call.p;
  p.x = p.x.slice(1, 0, 4);
  p.out = p.out.slice(1, 0, 4);
  EXPECT_EQ(reason(d, p), "x f32[4, 4]@cuda:0 strides [8, 1]: this kernel takes contiguous operands");
  p = call.p;
  p.x.dtype = p.out.dtype = DType::f16;
  EXPECT_EQ(reason(d, p), "x f16: this kernel takes one dtype throughout, of f32");

  Dispatcher without(cuda_toy());
  const jit::Nvrtc absent({"libkf_nothing.so"});
  without.add_kernel(jit::cuda_kernel("custom::mine", Op::activation, silu(), {}, absent, driver(), folder_));
  EXPECT_NE(reason(without, call.p).find("NVRTC: libkf_nothing.so"), std::string::npos)
      << reason(without, call.p);
  EXPECT_NE(what([&] { jit::compile("custom::mine", silu(), "sm_90", DType::f32, absent, ""); },
                 ErrorCode::unavailable)
                .find("install nvidia-cuda-nvrtc"),
            std::string::npos);
}

TEST_F(CudaSourceTest, SaysWhatIsWrongWithASource) {
  Dispatcher d(cuda_toy());
  const auto error_of = [&](CudaSource source) {
    Dispatcher fresh(cuda_toy());
    fresh.add_kernel(row(std::move(source)));
    Call call(fresh, 2, 8);
    return what([&] { fresh.run(call.p); });
  };
  CudaSource source = silu();
  source.entry = "other";
  EXPECT_NE(error_of(source).find("custom::mine.cu(1): error: identifier \"other\" is undefined"),
            std::string::npos);
  source = silu();
  source.args.pop_back();
  EXPECT_EQ(error_of(source), "custom::mine: silu has 3 parameters: expected as many entries of args, got 2");
  source = silu();
  source.source.replace(source.source.find("long long"), 9, "float");
  std::swap(source.args[1], source.args[2]);
  EXPECT_EQ(error_of(source),
            "custom::mine: parameter 2 of silu is f32: expected a pointer for args[2] (out)");
}

TEST_F(CudaSourceTest, SaysWhatIsWrongWithALaunch) {
  const auto error_of = [&](LaunchShape shape) {
    Dispatcher d(cuda_toy());
    CudaSource source = silu();
    source.shape = [shape](const CallSizes&) { return shape; };
    d.add_kernel(row(std::move(source)));
    Call call(d, 2, 8);
    return what([&] { d.run(call.p); });
  };
  EXPECT_EQ(error_of({.grid = {1, 65536, 1}}),
            "custom::mine: shape: grid: expected 1 to 65535 blocks in dimension 1, got 65536");
  EXPECT_EQ(error_of({.block = {32, 64, 1}}),
            "custom::mine: shape: block: expected at most 1024 threads, got 2048");
  EXPECT_EQ(error_of({.block = {0, 1, 1}}),
            "custom::mine: shape: block: expected 1 to 1024 threads in dimension 0, got 0");
  EXPECT_EQ(error_of({.shared_bytes = -1}),
            "custom::mine: shape: shared_bytes: expected 0 to 232448, got -1");
  CudaSource source = silu();
  source.args[2] = "x.shape[1";
  EXPECT_NE(what([&] { row(source); }).find("got x.shape[1"), std::string::npos);
  source = silu();
  source.dtypes = {DType::i8};
  EXPECT_EQ(what([&] { row(source); }), "custom::mine: dtypes: expected f32, f16 or bf16, got i8");
  source = silu();
  source.shape = {};
  EXPECT_EQ(what([&] { row(source); }), "custom::mine: shape: expected a function, got none");
  source = silu();
  source.settled = {"x"};
  EXPECT_EQ(what([&] { row(source); }), "custom::mine: expected an attribute of activation, got x");
  source = silu();
  source.transposed = {"kind"};
  EXPECT_EQ(what([&] { row(source); }), "custom::mine: expected a weight of activation, got kind");
}

TEST_F(CudaSourceTest, CompiledCodeIsKeptByContentOptionsAndArchitecture) {
  const auto compiles = [&](const CudaSource& source, const std::string& architecture = "sm_90",
                            DType dtype = DType::f32) {
    const int before = state().compilations;
    const CompiledCuda c = compile(source, architecture, dtype);
    EXPECT_EQ(c.cached, state().compilations == before);
    EXPECT_EQ(c.symbol, "silu");
    EXPECT_EQ(c.parameters, (std::vector<std::string>{"u64", "u64", "u64"}));
    EXPECT_FALSE(c.image.empty());
    return state().compilations - before;
  };
  EXPECT_EQ(compiles(silu()), 1);
  EXPECT_EQ(compiles(silu()), 0);
  EXPECT_EQ(compiles(silu(), "sm_80"), 1);
  EXPECT_EQ(compiles(silu(), "sm_90", DType::bf16), 1);
  CudaSource other = silu();
  other.options = {"--use_fast_math"};
  EXPECT_EQ(compiles(other), 1);
  EXPECT_EQ(compiles(other), 0);
  other = silu();
  other.source += " ";
  EXPECT_EQ(compiles(other), 1);
  other.options = {"-I/somewhere"};  // what lies there may change
  EXPECT_EQ(compiles(other), 1);
  EXPECT_EQ(compiles(other), 1);

  // What is not whole is compiled again, and kept again.
  for (const auto& entry : fs::directory_iterator(folder_))
    fs::resize_file(entry.path(), entry.file_size() / 2);
  EXPECT_EQ(compiles(silu()), 1);
  EXPECT_EQ(compiles(silu()), 0);
  for (const auto& entry : fs::directory_iterator(folder_)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-12, std::ios::end);
    file << "?";
  }
  EXPECT_EQ(compiles(silu()), 1);

  EXPECT_EQ(jit::compile("custom::mine", silu(), "sm_120", DType::f32, nvrtc(), "").image.substr(0, 8),
            ".visible")
      << "an architecture that NVRTC does not know yet: PTX";
  EXPECT_EQ(compiles(silu(), jit::own_architecture("sm_90")), 1) << "not sm_90's code";
  EXPECT_EQ(jit::own_architecture("sm_90"), "sm_90a");
  EXPECT_EQ(jit::own_architecture("sm_86"), "sm_86");
  EXPECT_NE(what([&] { compile(silu(), "sm_75"); }, ErrorCode::unavailable).find("its oldest is sm_80"),
            std::string::npos);
  EXPECT_NE(what([&] { compile(silu(), "hopper"); }).find("expected a name such as sm_90"),
            std::string::npos);
  const std::string file = folder_ + "/in_the_way";
  std::ofstream(file) << "a file";
  EXPECT_FALSE(jit::compile("custom::mine", silu(), "sm_90", DType::f32, nvrtc(), file).cached);
}

TEST_F(CudaSourceTest, ProcessesShareAFolder) {
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      bool right = true;
      for (int round = 0; round < 50; ++round) {
        CudaSource source = silu();
        source.source += std::string(static_cast<std::size_t>(round % 5), ' ');
        const CompiledCuda c = compile(source);
        right =
            right && c.symbol == "silu" && std::string(c.image.c_str()) == "silu" && c.parameters.size() == 3;
      }
      ::_exit(right ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 5)
      << "no part of a file is left";
}

TEST(CudaSource, ParametersAreReadFromPtx) {
  const std::string ptx =
      "\t// .globl f\n.visible .entry g(\n\t.param .u64 g_param_0\n)\n.weak .entry f(\n\t.param .u64 .ptr "
      ".align 1 "
      "f_param_0,\n\t.param .f32 f_param_1,\n\t.param .u8 f_param_2\n)\n.visible .entry none()\n.visible "
      ".entry bad(\n"
      "\t.param .align 4 .b8 bad_param_0[12]\n)\n";
  EXPECT_EQ(jit::ptx_parameters(ptx, "f"), (std::vector<std::string>{"u64", "f32", "u8"}));
  EXPECT_EQ(jit::ptx_parameters(ptx, "g"), (std::vector<std::string>{"u64"}));
  EXPECT_TRUE(jit::ptx_parameters(ptx, "none").empty());
  EXPECT_EQ(what([&] { jit::ptx_parameters(ptx, "bad"); }),
            "CUDA source: bad: parameter 0: expected a pointer or a number, got a structure");
  EXPECT_NE(what([&] { jit::ptx_parameters(ptx, "absent"); }).find("expected a __global__ function"),
            std::string::npos);
}

TEST(CudaSource, SizesHaveNames) {
  cases::Maker m("sizes");
  const LinearParams p{.x = m.normal(DType::f32, {3, 8}),
                       .weight = m.normal(DType::f32, {5, 8}),
                       .out = m.normal(DType::f32, {3, 5})};
  const std::vector<std::string> transposed = {"weight"}, none;
  const CallSizes turned(Op::linear, &p, transposed), plain(Op::linear, &p, none);
  EXPECT_EQ(turned.size("N"), 3);
  EXPECT_EQ(turned.size("D"), 8);
  EXPECT_EQ(turned.size("D_out"), 5);
  EXPECT_EQ(turned.size("weight.shape[0]"), 8);
  EXPECT_EQ(plain.size("weight.shape[0]"), 5);
  EXPECT_EQ(plain.size("weight.stride[-2]"), 8);
  EXPECT_EQ(plain.size("bias.numel"), 0);
  EXPECT_NE(what([&] { plain.size("x.shape[2]"); }).find("expected a dimension below 2, got 2"),
            std::string::npos);
  EXPECT_NE(what([&] { plain.size("x"); }).find("expected the name of a size, got x"), std::string::npos);
  EXPECT_NE(what([&] { plain.size("H"); }).find("got H"), std::string::npos);
}

}  // namespace
}  // namespace kf
