// Where a row's vectors go: through the caches or past them.
//
// Included once per SIMD target, after hwy/foreach_target.h.
#if defined(KF_SIMD_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KF_SIMD_STREAM_INL_H_
#undef KF_SIMD_STREAM_INL_H_
#else
#define KF_SIMD_STREAM_INL_H_
#endif

#include <cstdint>

#include "backends/cpu/simd/bf16_conversion.h"
#include "backends/cpu/simd/load_store-inl.h"
#include "backends/cpu/simd/pair-inl.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct CachedOut {
  T* row;
  template <class V, class Extent>
  HWY_INLINE void Put(F32Tag d, V v, std::int64_t i, Extent extent) const {
    StoreF32(d, v, row + i, extent);
  }
};

template <class T>
struct StreamOut {
  T* row;
  HWY_INLINE void Put(F32Tag d, F32Pair v, std::int64_t i, Two) const { StreamF32(d, v, row + i); }
  template <class Extent>
  HWY_INLINE void Put(F32Tag d, F32Vec v, std::int64_t i, Extent extent) const {
    StoreF32(d, v, row + i, extent);
  }
};

// Calls write(out) with the kind of output that `row` is to be. Of bf16, without kDenormals, results below 2^-126 may become
// zero: the processor's own conversion, which does that, is taken where there is one.
template <bool kDenormals = false, class T, class F>
HWY_INLINE void WithOut(bool stream, T* row, F&& write) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (kIsBf16<T> && !std::is_same_v<T, Bf16Converted> && !kDenormals) {
    if (cpu::has_bf16_conversion())
      return WithOut(stream, static_cast<Bf16Converted*>(static_cast<void*>(row)), write);
  }
#endif
  const std::size_t alignment = hn::Lanes(F32Tag()) * sizeof(float);
  if (stream && reinterpret_cast<std::uintptr_t>(row) % alignment == 0) {
    write(StreamOut<T>{row});
  } else {
    write(CachedOut<T>{row});
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#endif
