// The paged cache: pages handed out, shared and given back, and every refusal leaving all as it was.
#include "kf/kv_cache.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <vector>

#include "kf/error.h"

namespace kf {
namespace {

KvCache small_cache(std::int64_t num_pages = 6) {
  return KvCache(2, 3, 8, {.page_size = 4, .num_pages = num_pages});
}

void extend(KvCache& cache, SequenceId sequence, std::int64_t num_tokens) {
  const KvCache::Growth growth{sequence, num_tokens};
  cache.extend({&growth, 1});
}

std::vector<std::int32_t> pages(const KvCache& cache, SequenceId sequence) {
  const auto span = cache.pages(sequence);
  return {span.begin(), span.end()};
}

template <class F>
ErrorCode code_of(F&& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::unavailable;
}

TEST(KvCache, PoolsHaveTheLayoutAndDtypeAskedFor) {
  const KvCache hnd = small_cache();
  EXPECT_EQ(to_string(hnd.k(1)), "f32[6, 3, 4, 8]");
  EXPECT_EQ(hnd.nbytes(), std::size_t{2 * 2 * 6 * 3 * 4 * 8 * 4});
  const KvCache nhd(1, 3, 8, {.dtype = DType::bf16, .page_size = 4, .num_pages = 6, .layout = KvLayout::nhd});
  EXPECT_EQ(to_string(nhd.v(0)), "bf16[6, 4, 3, 8]");
}

TEST(KvCache, RefusesOptionsOutOfRange) {
  EXPECT_THROW(KvCache(1, 1, 8, {.page_size = 0, .num_pages = 1}), Error);
  EXPECT_THROW(KvCache(1, 1, 8, {.page_size = 4, .num_pages = 0}), Error);
  EXPECT_THROW(KvCache(1, 1, 8, {.page_size = 4, .num_pages = std::int64_t{1} << 31}), Error);
  EXPECT_THROW(KvCache(1, 1, 8, {.dtype = DType::i32, .page_size = 4, .num_pages = 1}), Error);
  EXPECT_THROW(KvCache(1, 1, 7, {.dtype = DType::int4, .page_size = 4, .num_pages = 1}), Error);
  EXPECT_THROW(KvCache(1, 1, 8, {.page_size = std::int64_t{1} << 31, .num_pages = 1}), Error);
  EXPECT_THROW(KvCache(0, 1, 8, {.page_size = 4, .num_pages = 1}), Error);
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(code_of([] { KvCache(32, 8, 128, {.page_size = kMax, .num_pages = kMax}); }),
            ErrorCode::resource_exhausted);
}

TEST(KvCache, TakesPagesAsTokensCome) {
  KvCache cache = small_cache();
  const SequenceId a = cache.create();
  EXPECT_EQ(cache.length(a), 0);
  EXPECT_EQ(cache.num_free_pages(), 6);
  extend(cache, a, 4);
  EXPECT_EQ(cache.num_free_pages(), 5);
  extend(cache, a, 1);
  EXPECT_EQ(cache.num_free_pages(), 4);
  EXPECT_EQ(cache.slot(a, 4), pages(cache, a)[1] * 4);
  EXPECT_EQ(cache.slot(a, 3), pages(cache, a)[0] * 4 + 3);
  EXPECT_THROW(cache.slot(a, 5), Error);
  cache.release(a);
  EXPECT_EQ(cache.num_free_pages(), 6);
  EXPECT_FALSE(cache.contains(a));
  EXPECT_EQ(code_of([&] { cache.length(a); }), ErrorCode::invalid_argument);
}

TEST(KvCache, ExtendsAllOrNothing) {
  KvCache cache = small_cache();
  const SequenceId a = cache.create(), b = cache.create();
  extend(cache, a, 6);
  const std::vector<std::int32_t> before = pages(cache, a);
  const KvCache::Growth too_much[] = {{a, 8}, {b, 9}};
  EXPECT_EQ(code_of([&] { cache.extend(too_much); }), ErrorCode::resource_exhausted);
  const KvCache::Growth twice[] = {{a, 1}, {a, 1}};
  EXPECT_EQ(code_of([&] { cache.extend(twice); }), ErrorCode::invalid_argument);
  const KvCache::Growth unknown[] = {{a, 1}, {99, 1}};
  EXPECT_EQ(code_of([&] { cache.extend(unknown); }), ErrorCode::invalid_argument);
  EXPECT_EQ(code_of([&] { extend(cache, a, std::numeric_limits<std::int64_t>::max()); }),
            ErrorCode::resource_exhausted);
  EXPECT_EQ(code_of([&] { extend(cache, a, -1); }), ErrorCode::invalid_argument);
  EXPECT_EQ(pages(cache, a), before);
  EXPECT_EQ(cache.length(a), 6);
  EXPECT_EQ(cache.length(b), 0);
  EXPECT_EQ(cache.num_free_pages(), 4);
  const KvCache::Growth exactly[] = {{a, 2}, {b, 16}};
  cache.extend(exactly);
  EXPECT_EQ(cache.num_free_pages(), 0);
}

TEST(KvCache, ForksShareWholePages) {
  KvCache cache = small_cache();
  const SequenceId a = cache.create();
  extend(cache, a, 11);
  const SequenceId b = cache.fork(a, 10);
  EXPECT_EQ(cache.length(b), 8);
  EXPECT_EQ(cache.num_free_pages(), 3);
  EXPECT_EQ(cache.references(pages(cache, a)[0]), 2);
  EXPECT_EQ(cache.references(pages(cache, a)[2]), 1);
  extend(cache, b, 1);
  EXPECT_EQ(pages(cache, b)[1], pages(cache, a)[1]);
  EXPECT_NE(pages(cache, b)[2], pages(cache, a)[2]);
  // The parent's end does not take the pages from the child.
  cache.release(a);
  EXPECT_EQ(cache.num_free_pages(), 3);
  EXPECT_EQ(cache.references(pages(cache, b)[0]), 1);
  cache.release(b);
  EXPECT_EQ(cache.num_free_pages(), 6);
  const SequenceId c = cache.create();
  EXPECT_EQ(code_of([&] { cache.fork(c, 1); }), ErrorCode::invalid_argument);
  EXPECT_EQ(cache.length(cache.fork(c, 0)), 0);
}

TEST(KvCache, TruncatesOutsideSharedPages) {
  KvCache cache = small_cache();
  const SequenceId a = cache.create();
  extend(cache, a, 11);
  cache.truncate(a, 9);
  EXPECT_EQ(cache.num_free_pages(), 3);
  const SequenceId b = cache.fork(a, 8);
  EXPECT_EQ(code_of([&] { cache.truncate(a, 7); }), ErrorCode::invalid_argument);
  EXPECT_EQ(cache.length(a), 9);
  cache.truncate(a, 4);
  EXPECT_EQ(cache.num_free_pages(), 4);  // the second page is still b's
  extend(cache, a, 1);
  EXPECT_NE(pages(cache, a)[1], pages(cache, b)[1]);
  EXPECT_THROW(cache.truncate(a, 6), Error);
  EXPECT_THROW(cache.truncate(a, -1), Error);
}

TEST(KvCache, NoPageIsHeldTwice) {
  KvCache cache = small_cache(32);
  std::vector<SequenceId> sequences;
  for (int round = 0; round < 50; ++round) {
    if (sequences.size() == 4) {
      cache.release(sequences.front());
      sequences.erase(sequences.begin());
    }
    sequences.push_back(cache.create());
    extend(cache, sequences.back(), 1 + round * 7 % 29);
    std::set<std::int32_t> held;
    std::size_t count = 0;
    for (const SequenceId s : sequences) {
      for (const std::int32_t page : cache.pages(s)) held.insert(page), ++count;
    }
    ASSERT_EQ(held.size(), count);
    ASSERT_EQ(cache.num_free_pages(), 32 - static_cast<std::int64_t>(count));
  }
}

}  // namespace
}  // namespace kf
