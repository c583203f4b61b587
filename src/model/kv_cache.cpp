#include "kf/kv_cache.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "kf/error.h"
#include "kf/ops/quantization.h"

namespace kf {
namespace {

std::array<std::int64_t, 4> pool_shape(std::int64_t num_kv_heads, std::int64_t head_dim,
                                       const KvCacheOptions& o) {
  if (o.layout == KvLayout::hnd) return {o.num_pages, num_kv_heads, o.page_size, head_dim};
  return {o.num_pages, o.page_size, num_kv_heads, head_dim};
}

void check_options(const KvCacheOptions& o) {
  if (!is_activation_dtype(o.dtype) && !needs_scales(o.dtype)) {
    throw_invalid(
        fmt::format("kv cache: dtype must be f32, f16, bf16, int4, i8, fp8_e4m3 or fp8_e5m2, got {}",
                    dtype_name(o.dtype)));
  }
  // Page ids in block tables are 32-bit, and so are positions.
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  if (o.page_size < 1 || o.page_size > kMax)
    throw_invalid(fmt::format("kv cache: page_size must be 1 to 2^31 - 1, got {}", o.page_size));
  if (o.num_pages < 1 || o.num_pages > kMax)
    throw_invalid(fmt::format("kv cache: num_pages must be 1 to 2^31 - 1, got {}", o.num_pages));
}

// Refused as a whole before a part of it is allocated.
void check_size(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim,
                const KvCacheOptions& o) {
  if (num_layers < 1 || num_kv_heads < 1 || head_dim < 1) {
    throw_invalid(
        fmt::format("kv cache: num_layers, num_kv_heads and head_dim must be at least 1, got {}, {}, {}",
                    num_layers, num_kv_heads, head_dim));
  }
  const double elements = 2.0 * static_cast<double>(num_layers) * static_cast<double>(num_kv_heads) *
                          static_cast<double>(head_dim) * static_cast<double>(o.page_size) *
                          static_cast<double>(o.num_pages);
  if (elements > 0x1p48) {
    throw Error(ErrorCode::resource_exhausted,
                fmt::format("kv cache: {} layers of {} pages of {} tokens are more than memory can hold",
                            num_layers, o.num_pages, o.page_size));
  }
}

}  // namespace

KvCache::KvCache(std::int64_t num_layers, std::int64_t num_kv_heads, std::int64_t head_dim,
                 const KvCacheOptions& options, const Memory& memory)
    : options_(options) {
  check_options(options_);
  check_size(num_layers, num_kv_heads, head_dim, options_);
  if (options_.dtype == DType::int4 && head_dim % 2 != 0)
    throw_invalid(fmt::format("kv cache: int4 needs an even head_dim, got {}", head_dim));
  // One block for all, since a layer's own often does not fill a page of 2 MB, and of pages of 4 KB a processor knows the places
  // of few.
  const auto layout = [&](DType dtype, std::int64_t width) {
    return TensorView::contiguous(nullptr, dtype, pool_shape(num_kv_heads, width, options_), memory.device);
  };
  const TensorView pool = layout(options_.dtype, head_dim),
                   scales = needs_scales(options_.dtype) ? layout(DType::f32, 1) : TensorView();
  constexpr std::size_t kAlignment = 256;  // of an allocation of its own, on any device
  const auto room = [](const TensorView& t) {
    return t.present() ? (t.nbytes() + kAlignment - 1) / kAlignment * kAlignment : 0;
  };
  const std::size_t bytes = 2 * static_cast<std::size_t>(num_layers) * (room(pool) + room(scales));
  block_ = memory.allocate ? memory.allocate(bytes) : allocate_host(bytes);
  auto* at = static_cast<std::byte*>(block_.get());
  const auto take = [&](TensorView t) {
    if (t.present()) t.data = at;
    at += room(t);
    return t;
  };
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (std::vector<TensorView>* pools : {&k_, &v_}) pools->push_back(take(pool));
    for (std::vector<TensorView>* pools : {&k_scales_, &v_scales_}) pools->push_back(take(scales));
  }
  references_.assign(options_.num_pages, 0);
  free_.resize(options_.num_pages);
  for (std::int64_t i = 0; i < options_.num_pages; ++i) {
    free_[i] = static_cast<std::int32_t>(options_.num_pages - 1 - i);
  }
}

const KvCache::Sequence& KvCache::find(SequenceId sequence) const {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end()) throw_invalid(fmt::format("kv cache: no sequence {}", sequence));
  return it->second;
}

KvCache::Sequence& KvCache::find(SequenceId sequence) {
  return const_cast<Sequence&>(std::as_const(*this).find(sequence));
}

SequenceId KvCache::create() {
  sequences_.emplace(next_, Sequence{});
  return next_++;
}

SequenceId KvCache::fork(SequenceId parent, std::int64_t num_tokens) {
  const Sequence& source = find(parent);
  if (num_tokens < 0 || num_tokens > source.length) {
    throw_invalid(fmt::format("kv cache: fork of {} tokens from sequence {}, which has {}", num_tokens,
                              parent, source.length));
  }
  const std::int64_t whole_pages = num_tokens / options_.page_size;
  Sequence copy;
  copy.pages.assign(source.pages.begin(), source.pages.begin() + whole_pages);
  copy.length = whole_pages * options_.page_size;
  const auto [it, inserted] = sequences_.emplace(next_, std::move(copy));
  for (const std::int32_t page : it->second.pages) ++references_[page];
  return next_++;
}

void KvCache::release(SequenceId sequence) {
  const std::vector<std::int32_t>& pages = find(sequence).pages;
  std::for_each(pages.rbegin(), pages.rend(), [&](std::int32_t page) { drop(page); });
  sequences_.erase(sequence);
}

void KvCache::drop(std::int32_t page) {
  if (--references_[page] == 0) free_.push_back(page);
}

std::int64_t KvCache::missing_pages(const Sequence& sequence, std::int64_t num_tokens) const {
  return pages_for(sequence.length + num_tokens) - static_cast<std::int64_t>(sequence.pages.size());
}

void KvCache::extend(std::span<const Growth> growths) {
  const std::int64_t capacity = options_.num_pages * options_.page_size;
  std::int64_t needed = 0;
  for (std::size_t i = 0; i < growths.size(); ++i) {
    const Growth& g = growths[i];
    if (g.num_tokens < 0) throw_invalid(fmt::format("kv cache: cannot extend by {} tokens", g.num_tokens));
    for (std::size_t j = 0; j < i; ++j) {
      if (growths[j].sequence == g.sequence) {
        throw_invalid(fmt::format("kv cache: sequence {} is extended twice in one call", g.sequence));
      }
    }
    // A count beyond the whole cache is cut off, so that the sum cannot overflow.
    needed += missing_pages(find(g.sequence), std::min(g.num_tokens, capacity + 1));
  }
  if (needed > num_free_pages()) {
    throw Error(ErrorCode::resource_exhausted,
                fmt::format("kv cache: {} more pages of {} tokens needed, {} of {} free", needed,
                            options_.page_size, num_free_pages(), options_.num_pages));
  }
  // All memory first, so that what follows cannot fail.
  for (const Growth& g : growths) {
    Sequence& s = find(g.sequence);
    const auto size = static_cast<std::size_t>(pages_for(s.length + g.num_tokens));
    if (size > s.pages.capacity()) s.pages.reserve(std::max(size, 2 * s.pages.capacity()));
  }
  for (const Growth& g : growths) {
    Sequence& s = find(g.sequence);
    for (std::int64_t n = missing_pages(s, g.num_tokens); n > 0; --n) {
      s.pages.push_back(free_.back());
      free_.pop_back();
      references_[s.pages.back()] = 1;
    }
    s.length += g.num_tokens;
  }
}

void KvCache::truncate(SequenceId sequence, std::int64_t length) {
  Sequence& s = find(sequence);
  if (length < 0 || length > s.length) {
    throw_invalid(
        fmt::format("kv cache: cannot truncate sequence {} of {} tokens to {}", sequence, s.length, length));
  }
  const auto kept = static_cast<std::size_t>(pages_for(length));
  if (length < s.length && length % options_.page_size != 0 && references_[s.pages[kept - 1]] > 1) {
    throw_invalid(
        fmt::format("kv cache: truncating sequence {} to {} tokens would end within a shared page; whole "
                    "pages of {} tokens may be kept",
                    sequence, length, options_.page_size));
  }
  while (s.pages.size() > kept) {
    drop(s.pages.back());
    s.pages.pop_back();
  }
  s.length = length;
}

std::int64_t KvCache::slot(SequenceId sequence, std::int64_t position) const {
  const Sequence& s = find(sequence);
  if (position < 0 || position >= s.length) {
    throw_invalid(
        fmt::format("kv cache: sequence {} of {} tokens has no position {}", sequence, s.length, position));
  }
  return s.pages[position / options_.page_size] * options_.page_size + position % options_.page_size;
}

std::size_t KvCache::nbytes() const {
  std::size_t sum = 0;
  for (const std::vector<TensorView>* pools : {&k_, &v_, &k_scales_, &v_scales_})
    for (const TensorView& t : *pools)
      if (t.present()) sum += t.nbytes();
  return sum;
}

}  // namespace kf
