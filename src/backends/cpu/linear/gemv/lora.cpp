#include "backends/cpu/linear/gemv/lora.h"

#include <algorithm>

#include "backends/cpu/linear/weights.h"

namespace kf::cpu::gemv {
namespace {

// One token of an input alone.
GemvInput token_of(const GemvInput& input, int t) {
  GemvInput one = input;
  one.values = input.token(t);
  one.num_tokens = 1;
  return one;
}

}  // namespace

GemvLora::GemvLora(const LinearParams& p, Workspace& space) : lora_(p.lora) {
  if (!present()) return;
  low_.in = lora_.a.dim(-2);
  low_.num_tokens = static_cast<int>(p.x.dim(0));
  low_.value_stride = value_stride(low_.in);
  low_.values = space.take<float>(static_cast<std::size_t>(low_.num_tokens) * low_.value_stride);
}

void GemvLora::project(const GemvInput& input, int thread, int threads) const {
  constexpr std::int64_t kUnit = 4;  // rows that are read together
  const std::int64_t units = (low_.in + kUnit - 1) / kUnit;
  const std::int64_t begin = std::min(low_.in, units * thread / threads * kUnit),
                     end = std::min(low_.in, units * (thread + 1) / threads * kUnit);
  if (begin < end && !lora_.index.present())
    dot_rows(adapter_weight(lora_.a, 0), input, begin, end, low_.values + begin, low_.value_stride);
  for (int t = 0; t < low_.num_tokens; ++t) {
    float* const low = low_.token(t);
    if (begin < end && lora_.index.present()) {
      if (const std::int32_t adapter = adapter_of(t); adapter >= 0)
        dot_rows(adapter_weight(lora_.a, adapter), token_of(input, t), begin, end, low + begin,
                 low_.value_stride);
    }
    for (std::int64_t r = begin; r < end; ++r) low[r] *= lora_.scale;
    if (end == low_.in && (begin < end || thread == 0))
      std::fill(low + low_.in, low + low_.value_stride, 0.0f);
  }
}

void GemvLora::add(std::int64_t begin, std::int64_t end, float* sums, std::size_t sums_stride) const {
  constexpr int kAtOnce = 4;  // tokens that a row is read for together
  constexpr std::int64_t kRows = 64;
  float extra[kAtOnce * kRows];
  const bool several = lora_.index.present();
  for (std::int64_t row = begin; row < end; row += kRows) {
    const std::int64_t row_end = std::min(end, row + kRows);
    for (int t = 0; t < low_.num_tokens;) {
      const std::int32_t adapter = several ? adapter_of(t) : 0;
      GemvInput tokens = token_of(low_, t);
      tokens.num_tokens = several ? 1 : std::min(kAtOnce, low_.num_tokens - t);
      if (adapter >= 0) {
        dot_rows(adapter_weight(lora_.b, adapter), tokens, row, row_end, extra, kRows);
        for (int i = 0; i < tokens.num_tokens; ++i) {
          float* const to = sums + static_cast<std::size_t>(t + i) * sums_stride + (row - begin);
          for (std::int64_t r = 0; r < row_end - row; ++r) to[r] += extra[i * kRows + r];
        }
      }
      t += tokens.num_tokens;
    }
  }
}

}  // namespace kf::cpu::gemv
