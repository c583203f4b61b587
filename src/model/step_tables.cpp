#include "model/step_tables.h"

#include <algorithm>

namespace kf {
namespace {

constexpr std::int64_t kAlignment = 64;

// The tables one after another from `base` on, the ids first, since they alone may stay as they are, and the block tables last,
// since of them a step has a part. Returns the bytes that they take.
std::size_t place(StepTables::Views& t, std::uintptr_t base, Device device, std::int64_t max_tokens,
                  std::int64_t max_batch, std::int64_t max_pages) {
  std::int64_t bytes = 0;
  const auto next = [&](DType dtype, std::int64_t count) {
    const TensorView view =
        TensorView::contiguous(reinterpret_cast<void*>(base + bytes), dtype, {count}, device);
    bytes += (static_cast<std::int64_t>(view.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
    return view;
  };
  t.ids = next(DType::i32, max_tokens);
  t.positions = next(DType::i32, max_tokens);
  t.slot_mapping = next(DType::i64, max_tokens);
  t.rows = next(DType::i32, max_tokens);
  t.cu_seqlens_q = next(DType::i32, max_batch + 1);
  t.context_lens = next(DType::i32, max_batch);
  t.block_tables = next(DType::i32, max_batch * max_pages);
  return static_cast<std::size_t>(bytes);
}

std::uintptr_t address(const std::shared_ptr<void>& memory) {
  return reinterpret_cast<std::uintptr_t>(memory.get());
}

bool is_wanted(const StepInput& in, std::size_t token) {
  return in.rows == Rows::all || (in.rows == Rows::last && token + 1 == in.tokens.size());
}

}  // namespace

StepCounts counts_of(std::span<const StepInput> batch, const KvCache& cache, std::int64_t ahead) {
  StepCounts n;
  for (const StepInput& in : batch) {
    n.num_tokens += std::ssize(in.tokens);
    if (in.rows != Rows::none) n.num_rows += in.rows == Rows::all ? std::ssize(in.tokens) : 1;
    n.context_len = std::max(n.context_len, cache.length(in.sequence) - ahead);
  }
  return n;
}

StepTables::StepTables(const Dispatcher& dispatcher, std::int64_t max_tokens, std::int64_t max_batch,
                       std::int64_t max_pages, std::int64_t ahead)
    : dispatcher_(dispatcher), host_(static_cast<std::size_t>(dispatcher.on_host() ? 1 : ahead)) {
  const std::size_t bytes = place(device_, 0, {}, max_tokens, max_batch, max_pages);
  host_memory_ = dispatcher.allocate_staging(host_.size() * bytes);
  device_memory_ = dispatcher.on_host() ? host_memory_ : dispatcher.allocate(bytes);
  for (std::size_t i = 0; i < host_.size(); ++i)
    place(host_[i], address(host_memory_) + i * bytes, {}, max_tokens, max_batch, max_pages);
  place(device_, address(device_memory_), dispatcher.caps().device, max_tokens, max_batch, max_pages);
}

void StepTables::put(std::span<const StepInput> batch, const KvCache& cache, const StepShape& shape,
                     const StepTableUse& use, const Launch& launch) {
  const Views& tables = host_[static_cast<std::size_t>(use.number) % host_.size()];
  std::int32_t* const ids = tables.ids.as<std::int32_t>();
  std::int32_t* const positions = tables.positions.as<std::int32_t>();
  std::int64_t* const slots = tables.slot_mapping.as<std::int64_t>();
  std::int32_t* const rows = tables.rows.as<std::int32_t>();
  std::int32_t* const cu_seqlens_q = tables.cu_seqlens_q.as<std::int32_t>();
  std::int32_t* const context_lens = tables.context_lens.as<std::int32_t>();
  std::int32_t* const block_tables = tables.block_tables.as<std::int32_t>();

  const std::int64_t page_size = cache.options().page_size;
  std::int64_t t = 0, num_rows = 0;
  cu_seqlens_q[0] = 0;
  for (std::size_t b = 0; b < batch.size(); ++b) {
    const StepInput& in = batch[b];
    const std::int64_t length = cache.length(in.sequence) - use.ahead;
    const std::span<const std::int32_t> pages =
        cache.pages(in.sequence).first(static_cast<std::size_t>(cache.pages_for(length)));
    std::int64_t position = length - std::ssize(in.tokens);
    for (std::size_t i = 0; i < in.tokens.size(); ++i, ++position, ++t) {
      if (!use.ids_there) ids[t] = in.tokens[i];
      positions[t] = static_cast<std::int32_t>(position);
      slots[t] = pages[position / page_size] * page_size + position % page_size;
      if (is_wanted(in, i)) rows[num_rows++] = static_cast<std::int32_t>(t);
    }
    cu_seqlens_q[b + 1] = static_cast<std::int32_t>(t);
    context_lens[b] = static_cast<std::int32_t>(length);
    std::int32_t* const table = block_tables + static_cast<std::int64_t>(b) * shape.max_pages;
    std::fill(std::ranges::copy(pages, table).out, table + shape.max_pages, -1);
  }
  // Tokens that only fill up: of no sequence, and kept nowhere.
  for (; t < shape.num_tokens; ++t) {
    if (!use.ids_there) ids[t] = 0;
    positions[t] = rows[t] = 0;
    slots[t] = -1;
    context_lens[t] = 0;
    cu_seqlens_q[t + 1] = cu_seqlens_q[t];
    std::fill_n(block_tables + t * shape.max_pages, shape.max_pages, -1);
  }
  if (dispatcher_.on_host()) return;

  const auto* begin = static_cast<const std::byte*>((use.ids_there ? tables.positions : tables.ids).data);
  const auto* end = reinterpret_cast<const std::byte*>(block_tables + shape.batch_size * shape.max_pages);
  const auto offset = begin - static_cast<const std::byte*>(tables.ids.data);
  dispatcher_.copy(static_cast<std::byte*>(device_memory_.get()) + offset, begin,
                   static_cast<std::size_t>(end - begin), CopyDirection::to_device, launch);
}

}  // namespace kf
