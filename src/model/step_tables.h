// What a step reads besides weights and caches: the new tokens, where they go, and whose they are. The host writes the tables
// into one piece of memory, of which a device has a copy: executables are bound to that once, and a step brings it up to date
// by one copy that waits for nothing. On the host both are the same.
#pragma once

#include <memory>
#include <vector>

#include "kf/engine.h"

namespace kf {

// Of a batch, where the cache was extended by `ahead` tokens more of each sequence than it feeds.
struct StepCounts {
  std::int64_t num_tokens = 0, num_rows = 0;
  std::int64_t context_len = 0;  // of the longest sequence
};
StepCounts counts_of(std::span<const StepInput> batch, const KvCache& cache, std::int64_t ahead = 0);

// Whose step's tables are put.
struct StepTableUse {
  std::int64_t number = 0;  // of the step, among those under way
  std::int64_t ahead = 0;   // as of StepCounts
  bool ids_there = false;   // the ids are on the device already
};

class StepTables {
 public:
  // `ahead`: how many steps may be enqueued before one is waited for.
  StepTables(const Dispatcher& dispatcher, std::int64_t max_tokens, std::int64_t max_batch,
             std::int64_t max_pages, std::int64_t ahead);

  struct Views {
    TensorView ids, positions, slot_mapping;  // i32, i32, i64 [max_tokens]
    TensorView rows;                          // i32 [max_tokens]
    TensorView cu_seqlens_q, context_lens;    // i32 [max_batch + 1], [max_batch]
    TensorView block_tables;                  // i32 [max_batch * max_pages]
  };
  const Views& device() const { return device_; }
  std::int64_t ahead() const { return static_cast<std::int64_t>(host_.size()); }

  // Writes the tables of a step of this shape, which may have room for more sequences of one token than the batch has, and
  // enqueues their copy. Up to ahead() steps may be under way.
  void put(std::span<const StepInput> batch, const KvCache& cache, const StepShape& shape,
           const StepTableUse& use, const Launch& launch);

 private:
  const Dispatcher& dispatcher_;
  std::shared_ptr<void> host_memory_, device_memory_;
  std::vector<Views> host_;
  Views device_;
};

}  // namespace kf
