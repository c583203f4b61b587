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

// Calls write(out) with the kind of output that `row` is to be.
template <class T, class F>
HWY_INLINE void WithOut(bool stream, T* row, F&& write) {
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
