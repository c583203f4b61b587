// Which instruction sets the SIMD kernels are compiled for. Include first in every file that uses
// hwy/foreach_target.h. On x86: the baseline (Highway's 128-bit emulation, which the compiler turns into
// SSE2), AVX2 with FMA, AVX-512; the levels between bring nothing to these kernels. A file that defines KF_SIMD_VNNI
// before takes AVX-512 only where it has VNNI (Highway's AVX3_DL), and AVX2 where it has not.
#pragma once

#ifdef KF_DEV_ONE_SIMD_TARGET
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL)
#elif defined(KF_SIMD_VNNI)
#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif
// Highway falls back to one lane (HWY_SCALAR) for GCC before 12.3, which may miscompile the upper half of integer
// products (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=106322); no kernel uses them.
#define HWY_BROKEN_EMU128 0
#include "hwy/detect_targets.h"
// The sanitizers' build, which compiles these kernels for one instruction set: for this one, and no lesser.
#if defined(KF_EXPECT_AVX2) && HWY_STATIC_TARGET != HWY_AVX2
#error "the flags of this build do not give AVX2"
#endif
