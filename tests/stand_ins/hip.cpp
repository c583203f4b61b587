// Stands in for libamdhip64.so where there is none: as many devices as STAND_IN_HIP names, by HIP's gcnArchName and wave size,
// "gfx906:sramecc+:xnack-/64,gfx1030/32". It has memory, the host's, and launches nothing. Compiled with HIP's headers.

#include <hip/hip_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::vector<std::string> devices() {
  std::vector<std::string> all;
  const char* const named = std::getenv("STAND_IN_HIP");
  std::istringstream list(named ? named : "");
  for (std::string device; std::getline(list, device, ',');) all.push_back(device);
  return all;
}

}  // namespace

extern "C" {

hipError_t hipGetDeviceCount(int* count) {
  *count = static_cast<int>(devices().size());
  return *count > 0 ? hipSuccess : hipErrorNoDevice;
}
hipError_t hipGetDeviceProperties(hipDeviceProp_t* p, int device) {
  const std::vector<std::string> all = devices();
  if (device < 0 || static_cast<std::size_t>(device) >= all.size()) return hipErrorInvalidDevice;
  const std::string& one = all[static_cast<std::size_t>(device)];
  const std::size_t slash = one.find('/');
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "stand-in");
  std::strncpy(p->gcnArchName, one.substr(0, slash).c_str(), sizeof p->gcnArchName - 1);
  p->warpSize = std::atoi(one.c_str() + slash + 1);
  p->multiProcessorCount = 60;
  p->sharedMemPerBlock = 64 << 10;
  p->l2CacheSize = 4 << 20;
  p->totalGlobalMem = std::size_t{16} << 30;
  return hipSuccess;
}
const char* hipGetErrorString(hipError_t e) {
  return e == hipErrorNoDevice ? "no device (stand-in)" : "error (stand-in)";
}
const char* hipGetErrorName(hipError_t) { return "stand-in"; }
hipError_t hipGetLastError() { return hipSuccess; }
hipError_t hipGetDevice(int* device) {
  *device = 0;
  return hipSuccess;
}
hipError_t hipSetDevice(int) { return hipSuccess; }
void** __hipRegisterFatBinary(const void*) {
  static void* module = nullptr;
  return &module;
}
void __hipRegisterFunction(void**, const void*, char*, const char*, unsigned, void*, void*, void*, void*,
                           int*) {}
void __hipUnregisterFatBinary(void**) {}

}  // extern "C"
