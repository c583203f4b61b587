// Low-rank adapters for few tokens: first the few numbers of each token that an adapter's rank has, then, chunk by chunk of
// the layer's rows, what they add.
#pragma once

#include <cstdint>

#include "backends/cpu/linear/gemv/dot.h"
#include "backends/cpu/workspace.h"
#include "kf/ops/linear.h"

namespace kf::cpu::gemv {

class GemvLora {
 public:
  // Takes its part of the workspace; nothing where the call has no adapter.
  GemvLora(const LinearParams& p, Workspace& space);

  bool present() const { return lora_.present(); }
  // low = scale * a @ x for this thread's share of the rank. A barrier must follow.
  void project(const GemvInput& input, int thread, int threads) const;
  // sums[t * sums_stride + row - begin] += low[t] . b[row] for all tokens.
  void add(std::int64_t begin, std::int64_t end, float* sums, std::size_t sums_stride) const;

 private:
  std::int32_t adapter_of(int t) const {
    return lora_.index.as<const std::int32_t>()[t * lora_.index.stride(0)];
  }

  const Lora& lora_;
  GemvInput low_;
};

}  // namespace kf::cpu::gemv
