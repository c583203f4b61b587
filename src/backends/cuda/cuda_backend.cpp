#include "backends/cuda/cuda_backend.h"

#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <vector>

#include <fmt/format.h>

#include "backends/cuda/runtime.h"
#include "kf/error.h"

namespace kf::cuda {
namespace {

// Kernels are compiled for sm_80 and newer.
constexpr int kMinCapability = 80;

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

// 0: the device does not say.
int compute_capability(int index) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  return major * 10 + minor;
}

Support available() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return Support::no(fmt::format("no usable NVIDIA GPU: {}", cudaGetErrorString(status)));
  }
  if (count == 0) return Support::no("no NVIDIA GPU on this machine");
  std::string found;
  for (int i = 0; i < count; ++i) {
    const int capability = compute_capability(i);
    if (capability >= kMinCapability) return Support::yes();
    found += fmt::format("{}{}.{}", i ? ", " : "", capability / 10, capability % 10);
  }
  return Support::no("no GPU of compute capability 8.0 or newer; there are " + found);
}

DeviceCaps capabilities(int index) {
  if (const Support s = available(); !s) throw Error(ErrorCode::unavailable, "cuda: " + s.reason());
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (index < 0 || index >= count)
    throw Error(ErrorCode::unavailable,
                fmt::format("cuda: expected a device index below {}, got {}", count, index));
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  if (properties.major * 10 + properties.minor < kMinCapability)
    throw Error(ErrorCode::unavailable,
                fmt::format("cuda:{}: expected compute capability 8.0 or newer, got {}.{}", index,
                            properties.major, properties.minor));
  DeviceCaps c;
  c.device = {DeviceType::cuda, index};
  c.name = fmt::format("{}, {} multiprocessors", properties.name, properties.multiProcessorCount);
  c.isa = fmt::format("sm_{}{}", properties.major, properties.minor);
  c.l1_bytes = properties.sharedMemPerMultiprocessor;
  c.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
  c.memory_bytes = properties.totalGlobalMem;
  return c;
}

// Memory comes from the device's pool in the order of the stream, which keeps what is freed: after the first calls a
// workspace costs a microsecond or two.
void keep_freed_memory(int device_index) {
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device_index), "cudaDeviceGetDefaultMemPool");
  std::uint64_t threshold = ~std::uint64_t{0};
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold),
        "cudaMemPoolSetAttribute");
}

void* allocate(int device_index, std::size_t bytes, void* stream) {
  const CurrentDevice current(device_index);
  static thread_local int prepared = -1;
  if (prepared != device_index) {
    keep_freed_memory(device_index);
    prepared = device_index;
  }
  void* memory = nullptr;
  check(cudaMallocAsync(&memory, bytes > 0 ? bytes : 1, stream_of(stream)), "cudaMallocAsync");
  return memory;
}

// The default stream is the current device's, so the device is made current. Also while the process ends, when all this fails.
void free_memory(int device_index, void* memory, void* stream) {
  int before = device_index;
  cudaGetDevice(&before);
  if (before != device_index) cudaSetDevice(device_index);
  cudaFreeAsync(memory, stream_of(stream));
  if (before != device_index) cudaSetDevice(before);
}

void* allocate_host(int device_index, std::size_t bytes) {
  const CurrentDevice current(device_index);
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), "cudaHostAlloc");
  return memory;
}
void free_host(void* memory) { cudaFreeHost(memory); }

void copy(int device_index, void* to, const void* from, std::size_t bytes, CopyDirection direction,
          void* stream) {
  const CurrentDevice current(device_index);
  const cudaMemcpyKind kind = direction == CopyDirection::to_device ? cudaMemcpyHostToDevice
                              : direction == CopyDirection::to_host ? cudaMemcpyDeviceToHost
                                                                    : cudaMemcpyDeviceToDevice;
  check(cudaMemcpyAsync(to, from, bytes, kind, stream_of(stream)), "cudaMemcpyAsync");
}

void synchronize(int device_index, void* stream) {
  const CurrentDevice current(device_index);
  check(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  throw_table_fault(device_index);
}

// Handles of the runtime that free themselves.
template <class T, cudaError_t (*kDestroy)(T)>
struct Handle {
  T value = nullptr;
  Handle() = default;
  ~Handle() {
    if (value) kDestroy(value);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator T() const { return value; }
};
using Stream = Handle<cudaStream_t, cudaStreamDestroy>;
using Event = Handle<cudaEvent_t, cudaEventDestroy>;
using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;

// A stream's launches as a graph that can be launched. Recorded on a stream of its own.
class Recording {
 public:
  explicit Recording(const std::function<void(void*)>& enqueue) {
    Stream stream;
    check(cudaStreamCreateWithFlags(&stream.value, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    Graph graph;
    try {
      enqueue(stream.value);
    } catch (...) {
      cudaStreamEndCapture(stream, &graph.value);
      cudaGetLastError();  // what broke the recording has been thrown
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph.value), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&exec_.value, graph, 0), "cudaGraphInstantiate");
    count_kernels(graph);
  }
  int kernels() const { return kernels_; }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(exec_, stream), "cudaGraphLaunch"); }

 private:
  void count_kernels(cudaGraph_t graph) {
    std::size_t count = 0;
    check(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
    std::vector<cudaGraphNode_t> nodes(count);
    check(cudaGraphGetNodes(graph, nodes.data(), &count), "cudaGraphGetNodes");
    for (cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
      kernels_ += type == cudaGraphNodeTypeKernel;
    }
  }

  GraphExec exec_;
  int kernels_ = 0;
};

std::shared_ptr<void> record(int device_index, const std::function<void(void*)>& enqueue) {
  const CurrentDevice current(device_index);
  return std::make_shared<Recording>(enqueue);
}
void replay(int device_index, void* recording, void* stream) {
  const CurrentDevice current(device_index);
  static_cast<const Recording*>(recording)->launch(stream_of(stream));
}

int recorded_launches(const void* recording) { return static_cast<const Recording*>(recording)->kernels(); }

bool is_recording(int device_index, void* stream) {
  const CurrentDevice current(device_index);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  // The default stream may not even be asked while another is recorded in the global mode.
  if (cudaStreamIsCapturing(stream_of(stream), &status) != cudaSuccess) {
    cudaGetLastError();
    return true;
  }
  return status != cudaStreamCaptureStatusNone;
}

// NVTX's, where a profiler has put its library in place (as NVTX finds it); else a call would only cost time.
Ranges ranges() {
  if (std::getenv("NVTX_INJECTION64_PATH") == nullptr) return {};
  return {[](const char* name) { nvtxRangePushA(name); }, [] { nvtxRangePop(); }};
}

// Calls are recorded and replayed, so that none waits for its launch.
double time_calls(int device_index, const std::function<void(void*)>& enqueue) {
  constexpr double kRoundMs = 3;
  constexpr int kRounds = 7, kMaxCalls = 2000;
  const CurrentDevice current(device_index);
  Stream stream;
  Event begin, end;
  check(cudaStreamCreateWithFlags(&stream.value, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaEventCreate(&begin.value), "cudaEventCreate");
  check(cudaEventCreate(&end.value), "cudaEventCreate");
  const auto measure = [&](const auto& work) {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    work();
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    return static_cast<double>(ms);
  };
  enqueue(stream.value);  // warm-up
  const double once = measure([&] { enqueue(stream.value); });
  const int calls = std::clamp(static_cast<int>(kRoundMs / std::max(once, 1e-4)), 1, kMaxCalls);
  const Recording recording([&](void* s) {
    for (int i = 0; i < calls; ++i) enqueue(s);
  });
  recording.launch(stream);  // warm-up
  std::array<double, kRounds> ms;
  for (double& m : ms) m = measure([&] { recording.launch(stream); }) / calls;
  std::nth_element(ms.begin(), ms.begin() + kRounds / 2, ms.end());
  throw_table_fault(device_index);
  return ms[kRounds / 2];
}

}  // namespace

const Backend& backend() {
  static const Backend b{"cuda",     DeviceType::cuda,
                         available,  capabilities,
                         kernels,    {allocate, free_memory, copy, synchronize, allocate_host, free_host},
                         time_calls, {record, replay, recorded_launches, is_recording},
                         ranges()};
  return b;
}

}  // namespace kf::cuda
