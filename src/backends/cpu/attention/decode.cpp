#include "backends/cpu/attention/decode.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/attention/decode.cpp"
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/attention/codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

void DecodeCodes(DType dtype, const void* codes, float scale, float zero, std::int64_t n, float* out) {
  with_kv_type(dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (kIsCode<T>) {
      const std::int64_t whole = n / 8 * 8;
      DecodeGroup(static_cast<const T*>(codes), scale, zero, whole, out);
      TensorView rest;
      rest.data = const_cast<void*>(codes);  // only read
      rest.dtype = dtype;
      for (std::int64_t i = whole; i < n; ++i) out[i] = (read_element(rest, i) - zero) * scale;
    }
  });
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(DecodeCodes);

void decode_codes(DType dtype, const void* codes, float scale, float zero, std::int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(DecodeCodes)(dtype, codes, scale, zero, n, out);
}

}  // namespace kf::cpu
#endif
