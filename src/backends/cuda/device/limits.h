// What differs, for the host too, between the machines that these sources are compiled for; what kernels ask of one is in
// machine.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace kf::cuda {

// kWarp: lanes of a warp. kMostShared: bytes of shared memory of a block, and of a multiprocessor, beside what kernels declare.
// kCopiesAside: whether there are copies to it that do not wait. kAnyAddress: whether words are loaded from any address.
#ifdef KF_WARP
inline constexpr int kWarp = KF_WARP;
inline constexpr std::size_t kMostShared = 63 << 10;
inline constexpr bool kCopiesAside = false, kAnyAddress = true;
#else
inline constexpr int kWarp = 32;
inline constexpr std::size_t kMostShared = 227 << 10;  // sm_90's
inline constexpr bool kCopiesAside = true, kAnyAddress = false;
#endif

}  // namespace kf::cuda
