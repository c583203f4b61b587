// The functions of HIP that the backend and compiled kernels call, each handed on to the library that is opened at its first use: a
// program with this backend starts where there is no HIP, too. Hidden, so that no other library's calls come here.

#include "backends/hip/library.h"

#include <hip/hip_runtime_api.h>

#define KF_STRING_(name) #name
#define KF_STRING(name) KF_STRING_(name)

namespace kf::hip {

// Of the version whose headers this is compiled with: structs differ between them.
const SharedLibrary& library() {
  static const auto* const opened = new SharedLibrary(
      std::vector<std::string>{"libamdhip64.so." KF_STRING(HIP_VERSION_MAJOR), "libamdhip64.so"});
  return *opened;
}

namespace {

template <class Function>
Function* find(const char* name) {
  return library().problem().empty() ? reinterpret_cast<Function*>(library().find(name)) : nullptr;
}

}  // namespace
}  // namespace kf::hip

// A name may be a macro for that of another version of the function.
// HIP's headers declare them as visible.
#define KF_HIDDEN(name) __asm__(".hidden " KF_STRING(name))
#define KF_HAND_ON(result, absent, name, parameters, arguments)                      \
  KF_HIDDEN(name);                                                                   \
  extern "C" result name parameters {                                                \
    static auto* const function = kf::hip::find<result parameters>(KF_STRING(name)); \
    return function ? function arguments : absent;                                   \
  }
#define KF_HIP(name, parameters, arguments) \
  KF_HAND_ON(hipError_t, hipErrorSharedObjectInitFailed, name, parameters, arguments)

KF_HIP(hipDeviceGetAttribute, (int* value, hipDeviceAttribute_t attribute, int device),
       (value, attribute, device))
KF_HIP(hipFree, (void* memory), (memory))
KF_HIP(hipGetDevice, (int* device), (device))
KF_HIP(hipGetDeviceCount, (int* count), (count))
KF_HIP(hipGetDeviceProperties, (hipDeviceProp_t * properties, int device), (properties, device))
KF_HIP(hipGetLastError, (), ())
KF_HIP(hipHostFree, (void* memory), (memory))
KF_HIP(hipHostMalloc, (void** memory, size_t bytes, unsigned flags), (memory, bytes, flags))
KF_HIP(hipLaunchKernel,
       (const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, hipStream_t stream),
       (kernel, grid, block, arguments, shared, stream))
KF_HIP(hipMalloc, (void** memory, size_t bytes), (memory, bytes))
KF_HIP(hipMemcpyAsync, (void* to, const void* from, size_t bytes, hipMemcpyKind kind, hipStream_t stream),
       (to, from, bytes, kind, stream))
KF_HIP(hipMemset, (void* memory, int value, size_t bytes), (memory, value, bytes))
KF_HIP(hipSetDevice, (int device), (device))
KF_HIP(hipStreamSynchronize, (hipStream_t stream), (stream))
KF_HAND_ON(const char*, "HIP is not here", hipGetErrorName, (hipError_t error), (error))
KF_HAND_ON(const char*, "HIP is not here", hipGetErrorString, (hipError_t error), (error))

// What clang's code for kernels calls, when a program starts and at a launch.
KF_HIP(__hipPopCallConfiguration, (dim3 * grid, dim3* block, size_t* shared, hipStream_t* stream),
       (grid, block, shared, stream))
KF_HAND_ON(void**, nullptr, __hipRegisterFatBinary, (const void* code), (code))
KF_HIDDEN(__hipRegisterFunction);
extern "C" void __hipRegisterFunction(void** module, const void* kernel, char* name, const char* device_name,
                                      unsigned threads, void* a, void* b, void* c, void* d, int* e) {
  using Register = void(void**, const void*, char*, const char*, unsigned, void*, void*, void*, void*, int*);
  static auto* const function = kf::hip::find<Register>("__hipRegisterFunction");
  if (function && module) function(module, kernel, name, device_name, threads, a, b, c, d, e);
}
KF_HIDDEN(__hipUnregisterFatBinary);
extern "C" void __hipUnregisterFatBinary(void** module) {
  static auto* const function = kf::hip::find<void(void**)>("__hipUnregisterFatBinary");
  if (function && module) function(module);
}
