// The slots of a page pool of keys or of values, as tokens are written to them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/rope/heads.h"
#include "core/quantized.h"
#include "kf/ops/attention.h"

namespace kf::cpu {

class CacheSlots {
 public:
  CacheSlots(const TensorView& cache, const Quantization& q, KvLayout layout)
      : cache_(cache), q_(q), layout_(layout) {
    if (!quantized()) return;
    scales_ = kv_broadcast(q.scales, cache);
    if (q.zeros.present()) zeros_ = kv_broadcast(q.zeros, cache);
    computes_scales_ = q.scales.dim(0) == cache.dim(0) && q.scales.dim(row_axis()) == cache.dim(row_axis());
  }

  bool quantized() const { return needs_scales(cache_.dtype); }
  const TensorView& cache() const { return cache_; }
  const Quantization& quantization() const { return q_; }
  // Whether each slot has scales of its own, which are made of its token; else they are given.
  bool computes_scales() const { return computes_scales_; }
  bool heads_share_scales() const { return q_.scales.dim(head_axis()) == 1; }
  std::int64_t group_size() const { return kv_group_size(cache_, q_); }

  // Where a head's codes, its scales and its zeros begin.
  std::int64_t code_at(std::int64_t slot, std::int64_t head) const { return offset(cache_, slot, head); }
  std::int64_t scale_at(std::int64_t slot, std::int64_t head) const { return offset(scales_, slot, head); }
  std::int64_t zero_at(std::int64_t slot, std::int64_t head) const {
    return zeros_.present() ? offset(zeros_, slot, head) : 0;
  }

  // Calls write_heads(heads) with where a token's heads go: to their slot, or to `scratch`, to be quantized.
  template <class F>
  void write(std::int64_t slot, std::int64_t num_heads, float* scratch, const F& write_heads) const;

 private:
  int row_axis() const { return layout_ == KvLayout::hnd ? 2 : 1; }
  int head_axis() const { return layout_ == KvLayout::hnd ? 1 : 2; }
  std::int64_t offset(const TensorView& t, std::int64_t slot, std::int64_t head) const {
    const std::int64_t page_size = cache_.dim(row_axis());
    return slot / page_size * t.stride(0) + slot % page_size * t.stride(row_axis()) +
           head * t.stride(head_axis());
  }

  const TensorView& cache_;
  const Quantization& q_;
  const KvLayout layout_;
  TensorView scales_, zeros_;
  bool computes_scales_ = false;
};

// Rounds a token's heads, one after another in f32, to a slot of a quantized cache: with scales made of them, or given.
void quantize_heads(const float* heads, std::int64_t num_heads, std::int64_t head_dim,
                    const CacheSlots& slots, std::int64_t slot);

// The heads of one token in f32 for each thread, where the caches are quantized.
class SlotScratch {
 public:
  // `k` [num_tokens, num_kv_heads, head_dim]; a null workspace is counted.
  SlotScratch(void* workspace, const TensorView& k, const TensorView& cache, int num_threads)
      : memory_(static_cast<float*>(workspace)),
        floats_(needs_scales(cache.dtype) ? (k.dim(1) * k.dim(2) + 15) / 16 * 16 : 0),
        num_threads_(num_threads) {}

  std::size_t bytes() const { return static_cast<std::size_t>(num_threads_ * floats_) * sizeof(float); }
  float* of_thread(int thread) const { return memory_ + thread * floats_; }

 private:
  float* memory_;
  std::int64_t floats_;
  int num_threads_;
};

template <class F>
void CacheSlots::write(std::int64_t slot, std::int64_t num_heads, float* scratch,
                       const F& write_heads) const {
  if (!quantized()) return write_heads(heads_of_slot(cache_, layout_, slot));
  const std::int64_t head_dim = cache_.dim(-1);
  write_heads(Heads{scratch, DType::f32, head_dim});
  quantize_heads(scratch, num_heads, head_dim, *this, slot);
}

}  // namespace kf::cpu
