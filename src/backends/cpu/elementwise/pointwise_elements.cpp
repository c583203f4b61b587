#include "backends/cpu/elementwise/pointwise_elements.h"

#include "core/half.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/elementwise/pointwise_elements.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/simd/activation-inl.h"
#include "backends/cpu/simd/pair-inl.h"
#include "backends/cpu/simd/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf {
namespace HWY_NAMESPACE {

// Functions of vectors, for results that are kept as T. kDenormals: see WithOut; what only adds, multiplies or copies keeps
// them.
struct Sum {
  static constexpr bool kDenormals = true;
  template <class T>
  static HWY_INLINE F32Vec Of(F32Tag, F32Vec a, F32Vec b) {
    return hn::Add(a, b);
  }
};
struct Product {
  static constexpr bool kDenormals = true;
  template <class T>
  static HWY_INLINE F32Vec Of(F32Tag, F32Vec a, F32Vec b) {
    return hn::Mul(a, b);
  }
};
template <Activation kKind>
struct Activated {
  static constexpr bool kUnary = true, kDenormals = kKind == Activation::none || kKind == Activation::relu;
  template <class T>
  static HWY_INLINE F32Vec Of(F32Tag d, F32Vec a) {
    return Activate<kKind, T>(d, a);
  }
};
template <Activation kKind>
struct Gated {
  static constexpr bool kDenormals = Activated<kKind>::kDenormals;
  template <class T>
  static HWY_INLINE F32Vec Of(F32Tag d, F32Vec a, F32Vec b) {
    return hn::Mul(Activate<kKind, T>(d, a), b);
  }
};

// out = f(a) or f(a, b), as F takes. `a` is fetched some way ahead: computing leaves the processor too little sight of
// what comes, and its own prefetching ends with each page.
template <class T, class F>
void Map(const cpu::Elements& e) {
  constexpr std::int64_t kAhead = 2048 / sizeof(T);
  const F32Tag d;
  const auto* a = static_cast<const T*>(e.a);
  const auto* b = static_cast<const T*>(e.b);
  const auto f = [d](auto... v) HWY_ATTR { return F::template Of<T>(d, v...); };
  WithOut<F::kDenormals>(e.stream, static_cast<ResultOf<T>*>(e.out), [&](auto out) HWY_ATTR {
    ForEachPair(e.n, [&](std::int64_t i, auto extent) HWY_ATTR {
      hwy::Prefetch(a + i + kAhead);
      if constexpr (requires { F::kUnary; }) {
        out.Put(d, Each(f, LoadF32(d, a + i, extent)), i, extent);
      } else {
        out.Put(d, Each(f, LoadF32(d, a + i, extent), LoadF32(d, b + i, extent)), i, extent);
      }
    });
  });
  if (e.stream) hwy::FlushStream();
}

template <class F>
void MapAnyType(const cpu::Elements& e) {
  with_activation_type(e.dtype, [&]<class T>(std::type_identity<T>) { Map<T, F>(e); });
}

void BinaryElements(BinaryKind kind, const cpu::Elements& e) {
  kind == BinaryKind::add ? MapAnyType<Sum>(e) : MapAnyType<Product>(e);
}

template <template <Activation> class F>
void MapAnyActivation(Activation kind, const cpu::Elements& e) {
  switch (kind) {
    case Activation::none:
      return MapAnyType<F<Activation::none>>(e);
    case Activation::silu:
      return MapAnyType<F<Activation::silu>>(e);
    case Activation::gelu:
      return MapAnyType<F<Activation::gelu>>(e);
    case Activation::gelu_tanh:
      return MapAnyType<F<Activation::gelu_tanh>>(e);
    case Activation::relu:
      return MapAnyType<F<Activation::relu>>(e);
  }
}

void ActivationElements(Activation kind, const cpu::Elements& e) { MapAnyActivation<Activated>(kind, e); }
void GatedElements(Activation kind, const cpu::Elements& e) { MapAnyActivation<Gated>(kind, e); }

}  // namespace HWY_NAMESPACE
}  // namespace kf
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf {
HWY_EXPORT(BinaryElements);
HWY_EXPORT(ActivationElements);
HWY_EXPORT(GatedElements);

namespace cpu {

void binary_elements(BinaryKind kind, const Elements& e) { HWY_DYNAMIC_DISPATCH(BinaryElements)(kind, e); }
void activation_elements(Activation kind, const Elements& e) {
  HWY_DYNAMIC_DISPATCH(ActivationElements)(kind, e);
}
void gated_elements(Activation kind, const Elements& e) { HWY_DYNAMIC_DISPATCH(GatedElements)(kind, e); }

}  // namespace cpu
}  // namespace kf
#endif
