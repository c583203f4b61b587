#include "backends/cpu/linear/gemv/int8.h"

#include <bit>
#include <cfloat>
#include <limits>

#include "backends/cpu/elementwise/quantize_row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backends/cpu/linear/gemv/int8.cpp"
#define KF_SIMD_VNNI
#include "backends/cpu/simd/targets.h"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "backends/cpu/linear/gemv/int8_formats-inl.h"
#include "backends/cpu/linear/gemv/tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kf::cpu::HWY_NAMESPACE {

// Elements of a step in each order.
constexpr std::size_t kWholeRow = 512, kGroup = 128;
std::size_t StepElems(CodeOrder order) {
  switch (order) {
    case CodeOrder::row:
      return kWholeRow;
    case CodeOrder::group:
      return kGroup;
    case CodeOrder::block:
      return Q8Int8::kStepElems;
    default:
      return NibbleProducts::kStepElems;
  }
}

// Codes of a step from where they lie to the order of the weight's, `bytes` of them.
void Arrange(CodeOrder order, const std::int8_t* codes, std::size_t elems, std::int8_t* to) {
  const hn::CappedTag<std::int8_t, 16> d;
  if (order != CodeOrder::halves && order != CodeOrder::neighbours) {
    std::memcpy(to, codes, elems);
    return;
  }
  for (std::size_t i = 0; i < elems; i += 32, to += 16) {
    hn::Vec<decltype(d)> low, high;
    if (order == CodeOrder::halves) {
      low = hn::LoadU(d, codes + i);
      high = hn::LoadU(d, codes + i + 16);
    } else {
      hn::LoadInterleaved2(d, codes + i, low, high);
    }
    hn::StoreU(low, d, to);
    hn::StoreU(high, d, to + kVectorBytes);
  }
}

void FillForm(CodeOrder order, const std::int8_t* codes, std::int64_t in, float* form) {
  const std::size_t elems = StepElems(order), vectors = elems / kVectorBytes;
  const bool nibbles = order == CodeOrder::halves || order == CodeOrder::neighbours;
  const auto offset = hn::Set(UnsignedBytes(), nibbles ? NibbleProducts::kOffset : SignedProducts::kOffset);
  for (std::int64_t k = 0; k < in; k += static_cast<std::int64_t>(elems)) {
    Arrange(order, codes + k, elems, reinterpret_cast<std::int8_t*>(form));
    IntVec sum = hn::Zero(IntTag());
    for (std::size_t v = 0; v < vectors; ++v, form += kLanes)
      sum = DotUnsigned(offset, IntProducts::LoadInput(form), sum);
    hn::Store(hn::Sub(hn::Zero(IntTag()), sum), IntTag(), reinterpret_cast<std::int32_t*>(form));
    form += kLanes;
  }
}

std::size_t FormFloats(CodeOrder order, std::int64_t in) {
  const std::size_t elems = StepElems(order);
  return (static_cast<std::size_t>(in) + elems - 1) / elems * (elems / kVectorBytes + 1) * kLanes;
}

void DotInt8Rows(const TensorView& weight, const Quantization& q, const GemvInput& input, CodeOrder order,
                 std::int64_t begin, std::int64_t end, float* sums, std::size_t sums_stride) {
  const Rows w = rows_from(weight, input.in, begin);
  const auto num_rows = static_cast<std::size_t>(end - begin);
  const float* const x = input.codes.forms[static_cast<int>(order)];
  const std::size_t x_stride = input.codes.strides[static_cast<int>(order)];
  const auto blocks = [&]<class Format>(std::type_identity<Format>) {
    DotAll<Format>(w, num_rows, x, x_stride, input.num_tokens, sums, sums_stride);
  };
  const auto scaled = [&]<class Format, int kGroups = 1>(std::type_identity<Format>,
                                                         std::integral_constant<int, kGroups> = {}) {
    DotScaled<Format, kGroups>(weight, q, w, begin, num_rows, x, x_stride, input.num_tokens, sums,
                               sums_stride);
  };
  const auto with_zeros = [&](auto dot) {
    if (q.zeros.present()) return dot(std::true_type());
    return dot(std::false_type());
  };
  switch (order) {
    case CodeOrder::row:
      return with_zeros(
          [&]<bool kZ>(std::bool_constant<kZ>) { scaled(std::type_identity<ByteInt8<kWholeRow, kZ>>()); });
    case CodeOrder::group:
      return with_zeros(
          [&]<bool kZ>(std::bool_constant<kZ>) { scaled(std::type_identity<ByteInt8<kGroup, kZ>>()); });
    case CodeOrder::block:
      if (weight.dtype == DType::q8_0) return blocks(std::type_identity<Q8Int8>());
      return with_zeros([&]<bool kZ>(std::bool_constant<kZ>) {
        const std::type_identity<ByteInt8<Q8Int8::kStepElems, kZ>> format;
        constexpr int kOf32 = Q8Int8::kStepElems / 32;
        if (q.group_size == 32) return scaled(format, std::integral_constant<int, kOf32>());
        scaled(format);
      });
    case CodeOrder::halves:
      if (weight.dtype == DType::q4_0) return blocks(std::type_identity<BlocksInt8<false>>());
      return blocks(std::type_identity<BlocksInt8<true>>());
    default:
      return with_zeros([&]<bool kZ>(std::bool_constant<kZ>) {
        const std::type_identity<Int4Int8<kZ>> format;
        constexpr int kOf32 = NibbleProducts::kStepElems / 32, kOf64 = std::max(1, kOf32 / 2);
        if (q.group_size == 32) return scaled(format, std::integral_constant<int, kOf32>());
        if (q.group_size == 64) return scaled(format, std::integral_constant<int, kOf64>());
        scaled(format);
      });
  }
}

}  // namespace kf::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kf::cpu {
HWY_EXPORT(FillForm);
HWY_EXPORT(FormFloats);
HWY_EXPORT(DotInt8Rows);

CodeOrder code_order(const Weight& weight) {
  if (weight.sparsity.present()) return CodeOrder::none;
  switch (weight.layout.dtype) {
    case DType::i8:
      if (weight.quantization.group_size == 0) return CodeOrder::row;
      return weight.quantization.group_size < 128 ? CodeOrder::block : CodeOrder::group;
    case DType::q8_0:
      return CodeOrder::block;
    case DType::q4_0:
    case DType::q4_1:
      return CodeOrder::halves;
    case DType::int4:
      return CodeOrder::neighbours;
    default:
      return CodeOrder::none;
  }
}

std::size_t code_stride(std::int64_t in) {
  constexpr std::size_t kWhole = 512;  // the longest step
  return (static_cast<std::size_t>(in) + kWhole - 1) / kWhole * kWhole;
}

std::size_t code_form_stride(CodeOrder order, std::int64_t in) {
  return HWY_DYNAMIC_DISPATCH(FormFloats)(order, in);
}

void quantize_token(const GemvInput& input, int t) {
  const GemvCodes& c = input.codes;
  const float* const values = input.token(t);
  std::int8_t* const row = c.rows + static_cast<std::size_t>(t) * c.row_stride;
  float scale = quantize_row(DType::f32, values, DType::i8, row, input.in, 0.0f);
  bool finite = true;
  for (std::int64_t k = 0; k < input.in; ++k)
    finite = finite & ((std::bit_cast<std::uint32_t>(values[k]) & 0x7fffffffu) < 0x7f800000u);
  if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
  if (scale < FLT_MIN) scale = 0;  // a denormal scale is too coarse: codes would leave their range
  const std::size_t kept = finite && scale > 0 ? static_cast<std::size_t>(input.in) : 0;
  std::memset(row + kept, 0, c.row_stride - kept);
  c.scales[t] = scale;
  for (int i = 0; i < kNumCodeOrders; ++i)
    if (c.forms[i] != nullptr) HWY_DYNAMIC_DISPATCH(FillForm)
  (static_cast<CodeOrder>(i), row, input.in, c.forms[i] + static_cast<std::size_t>(t) * c.strides[i]);
}

void dot_int8_rows(const Weight& weight, const GemvInput& input, std::int64_t begin, std::int64_t end,
                   float* sums, std::size_t sums_stride) {
  HWY_DYNAMIC_DISPATCH(DotInt8Rows)
  (weight.layout, weight.quantization, input, code_order(weight), begin, end, sums, sums_stride);
  for (int t = 0; t < input.num_tokens; ++t)
    for (std::int64_t r = 0; r < end - begin; ++r)
      sums[static_cast<std::size_t>(t) * sums_stride + static_cast<std::size_t>(r)] *= input.codes.scales[t];
}

}  // namespace kf::cpu
#endif
