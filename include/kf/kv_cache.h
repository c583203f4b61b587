// A paged cache of keys and values: one pool of pages a layer, and for each sequence the list of pages that
// hold it (Kwon et al., PagedAttention, 2023). A contiguous cache is the case of one page a sequence.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kf/ops/common.h"
#include "kf/tensor.h"

namespace kf {

struct KvCacheOptions {
  // f32, f16 or bf16; or int4, i8, fp8_e4m3 or fp8_e5m2, with a scale for each token and head.
  DType dtype = DType::f32;
  std::int64_t page_size = 16;
  std::int64_t num_pages = 0;
  KvLayout layout = KvLayout::hnd;
};

using SequenceId = std::int64_t;

// Not safe for concurrent changes. Every member that throws leaves the cache as it was.
class KvCache {
 public:
  // Where the pools lie, in one block: on the host by default.
  struct Memory {
    Device device;
    std::function<std::shared_ptr<void>(std::size_t bytes)> allocate;
  };
  KvCache(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim,
          const KvCacheOptions& options, const Memory& memory = {});

  // Sequences are named by number. A number that names none is refused with invalid_argument by all that take one.

  // An empty sequence; takes no pages yet.
  SequenceId create();
  // A sequence that starts as `parent`'s first tokens and shares their pages: whole pages only, so that
  // neither writes into the other's; length() of the result says how many tokens that is. Throws invalid_argument unless
  // num_tokens is 0 to the parent's length.
  SequenceId fork(SequenceId parent, std::int64_t num_tokens);
  void release(SequenceId sequence);

  // Room for new tokens at the end of several sequences, all or nothing: resource_exhausted when the free
  // pages do not suffice. The caller writes the tokens at their slots.
  struct Growth {
    SequenceId sequence;
    std::int64_t num_tokens;
  };
  void extend(std::span<const Growth> growths);
  // Drops the tokens from `length` on. Refused where it would end within a page that another sequence shares.
  void truncate(SequenceId sequence, std::int64_t length);

  bool contains(SequenceId sequence) const { return sequences_.contains(sequence); }
  std::int64_t length(SequenceId sequence) const { return find(sequence).length; }
  std::span<const std::int32_t> pages(SequenceId sequence) const { return find(sequence).pages; }
  // Where the token at `position`, which it has, lies: page * page_size + row. Throws invalid_argument.
  std::int64_t slot(SequenceId sequence, std::int64_t position) const;

  const KvCacheOptions& options() const { return options_; }
  std::int64_t num_free_pages() const { return static_cast<std::int64_t>(free_.size()); }
  std::int64_t pages_for(std::int64_t num_tokens) const {
    return (num_tokens + options_.page_size - 1) / options_.page_size;
  }
  // How many sequences have the page, which is one of the pool's: not checked.
  int references(std::int32_t page) const { return references_[page]; }
  std::size_t nbytes() const;

  std::int64_t num_layers() const { return static_cast<std::int64_t>(k_.size()); }
  // The pools of a layer, which is 0 to num_layers() - 1: not checked.
  const TensorView& k(std::int64_t layer) const { return k_[layer]; }
  const TensorView& v(std::int64_t layer) const { return v_[layer]; }
  // Their scales, f32, with 1 in the place of head_dim; absent where the dtype needs none.
  const TensorView& k_scales(std::int64_t layer) const { return k_scales_[layer]; }
  const TensorView& v_scales(std::int64_t layer) const { return v_scales_[layer]; }

 private:
  struct Sequence {
    std::vector<std::int32_t> pages;
    std::int64_t length = 0;
  };
  const Sequence& find(SequenceId sequence) const;
  Sequence& find(SequenceId sequence);
  std::int64_t missing_pages(const Sequence& sequence, std::int64_t num_tokens) const;
  void drop(std::int32_t page);

  KvCacheOptions options_;
  std::shared_ptr<void> block_;
  std::vector<TensorView> k_, v_, k_scales_, v_scales_;
  std::vector<int> references_;     // of each page
  std::vector<std::int32_t> free_;  // pages without a reference, the next to hand out last
  std::unordered_map<SequenceId, Sequence> sequences_;
  SequenceId next_ = 0;
};

}  // namespace kf
