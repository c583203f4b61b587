// Bad input, for every op by reflection: a missing, misplaced or mistyped operand is an invalid_argument that names it,
// and outputs stay as they were. What is particular to an op follows below.

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

using cases::Case;
using cases::Instance;

// The first non-empty small case of an op: a call that is right, to be spoiled.
const Case& good_case(Op op) {
  for (const Case& c : cases::all_cases()) {
    if (c.op != op || c.bench) continue;
    Instance i = cases::instantiate(c);
    bool empty = false;
    for (const Slot& s : slots_of(op, i.params.data())) empty = empty || (s.tensor->present() && s.tensor->numel() == 0);
    if (!empty) return c;
  }
  throw std::logic_error(std::string("no small case of ") + op_name(op));
}

struct Spoiled {
  std::string what, slot;
  Instance instance;
};

// Expects an invalid_argument that names the operand, and outputs untouched.
void expect_refused(Dispatcher& d, Op op, Spoiled& s) {
  std::map<std::string, std::vector<unsigned char>> before;
  auto bytes_of = [](const TensorView& t) {
    const auto* p = t.as<unsigned char>();
    return t.is_contiguous() && p ? std::vector<unsigned char>(p, p + t.nbytes()) : std::vector<unsigned char>{};
  };
  for (const Slot& slot : slots_of(op, s.instance.params.data()))
    if (slot.tensor->present() && slot.role != Role::in && slot.name != s.slot) before[slot.name] = bytes_of(*slot.tensor);
  try {
    d.run(op, s.instance.params.data(), {.families = ~0u});
    FAIL() << op_name(op) << ": " << s.what << " of " << s.slot << " was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << e.what();
    EXPECT_NE(std::string(e.what()).find(op_name(op)), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("expected"), std::string::npos) << e.what();
  }
  for (const Slot& slot : slots_of(op, s.instance.params.data()))
    if (before.contains(slot.name)) EXPECT_EQ(bytes_of(*slot.tensor), before[slot.name]) << slot.name << " was changed";
}

class BadInput : public testing::TestWithParam<Op> {
 protected:
  // One spoiled call for each operand that `spoil` says it spoiled.
  void for_each_slot(const std::string& what, const std::function<bool(const Slot&)>& spoil) {
    Dispatcher d(backend_by_name("cpu"));
    const Case& c = good_case(GetParam());
    const std::size_t n = slots_of(c.op, cases::instantiate(c).params.data()).size();
    for (std::size_t i = 0; i < n; ++i) {
      Spoiled s{what, {}, cases::instantiate(c)};
      const Slot slot = slots_of(c.op, s.instance.params.data())[i];
      s.slot = slot.name;
      if (spoil(slot)) expect_refused(d, c.op, s);
    }
  }
};

TEST_P(BadInput, MissingOperand) {
  for_each_slot("absence", [](const Slot& s) {
    if (s.optional) return false;
    *s.tensor = TensorView{};
    return true;
  });
}

TEST_P(BadInput, WrongDevice) {
  for_each_slot("wrong device", [](const Slot& s) {
    if (!s.tensor->present()) return false;
    s.tensor->device = {DeviceType::mlu, 0};
    return true;
  });
}

TEST_P(BadInput, WrongDtype) {
  for_each_slot("wrong dtype", [](const Slot& s) {
    if (!s.tensor->present()) return false;
    s.tensor->dtype = DType::boolean;
    return true;
  });
}

TEST_P(BadInput, TooManyDimensions) {
  for_each_slot("a sixth dimension", [](const Slot& s) {
    if (!s.tensor->present()) return false;
    while (s.tensor->rank < kMaxRank) {
      s.tensor->shape[s.tensor->rank] = 1;
      s.tensor->strides[s.tensor->rank++] = 1;
    }
    return true;
  });
}

TEST_P(BadInput, OutputOfTheWrongShape) {
  for_each_slot("a wrong shape", [](const Slot& s) {
    if (s.role != Role::out || !s.tensor->present()) return false;
    s.tensor->shape[0] += 1;
    return true;
  });
}

TEST_P(BadInput, OutputThatFoldsElementsTogether) {
  for_each_slot("a zero stride", [](const Slot& s) {
    if (s.role == Role::in || !s.tensor->present() || s.tensor->rank < 1 || s.tensor->shape[0] < 2) return false;
    s.tensor->strides[0] = 0;
    return true;
  });
}

std::vector<Op> ops() {
  std::vector<Op> out;
  for (const OpInfo& info : all_ops()) out.push_back(info.op);
  return out;
}
INSTANTIATE_TEST_SUITE_P(, BadInput, testing::ValuesIn(ops()), [](const auto& info) { return op_name(info.param); });

// Runs with bad values in a host table and expects the message to quote the value.
template <class P>
void expect_data_refused(const P& p, const std::string& quoted) {
  Dispatcher d(backend_by_name("cpu"));
  try {
    d.run(p, {.families = ~0u});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(e.what()).find(quoted), std::string::npos) << e.what();
  }
}

TEST(BadData, TokenIdOutOfRange) {
  cases::Maker m("ids");
  const TensorView out = m.filled(DType::f32, {2, 4}, 5);
  expect_data_refused(
      EmbeddingParams{.ids = m.integers(DType::i32, {3, 8}), .table = m.normal(DType::f32, {8, 4}), .out = out}, "8");
  expect_data_refused(
      EmbeddingParams{.ids = m.integers(DType::i32, {-1, 2}), .table = m.normal(DType::f32, {8, 4}), .out = out}, "-1");
  EXPECT_EQ(out.as<float>()[0], 5);
}

TEST(BadData, SlotBeyondTheCache) {
  cases::Maker m("slots");
  AppendKvParams p{.k = m.normal(DType::f32, {2, 1, 8}),
                   .v = m.normal(DType::f32, {2, 1, 8}),
                   .slot_mapping = m.integers(DType::i64, {0, 8}),
                   .k_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9),
                   .v_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9)};
  expect_data_refused(p, "8");
  EXPECT_EQ(p.k_cache.as<float>()[0], 9) << "a good slot before the bad one was written";
}

TEST(BadData, PageIdsAndLengthsOfAPagedCache) {
  cases::Maker m("pages");
  AttentionParams p{.q = m.normal(DType::f32, {1, 2, 32}),
                    .k = m.normal(DType::f32, {3, 1, 4, 32}),
                    .v = m.normal(DType::f32, {3, 1, 4, 32}),
                    .out = m.filled(DType::f32, {1, 2, 32}, 9),
                    .tables = {.block_tables = m.table({{0, 3}}), .context_lens = m.integers(DType::i32, {5})}};
  expect_data_refused(p, "3");  // page 3 of 3
  p.tables.block_tables = m.table({{0, -1}});
  expect_data_refused(p, "-1");  // padding where a page is needed
  p.tables.block_tables = m.table({{0, 1}});
  p.tables.context_lens = m.integers(DType::i32, {9});
  expect_data_refused(p, "9");  // more keys than the listed pages hold
  p.tables.context_lens = m.integers(DType::i32, {-2});
  expect_data_refused(p, "-2");
  EXPECT_EQ(p.out.as<float>()[0], 9);
}

TEST(BadData, CumulativeLengthsThatDecrease) {
  cases::Maker m("cu");
  AttentionParams p{.q = m.normal(DType::f32, {4, 2, 32}),
                    .k = m.normal(DType::f32, {4, 1, 32}),
                    .v = m.normal(DType::f32, {4, 1, 32}),
                    .out = m.filled(DType::f32, {4, 2, 32}, 9),
                    .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, 3, 2, 4}),
                               .cu_seqlens_k = m.integers(DType::i32, {0, 1, 2, 4})}};
  expect_data_refused(p, "2");
  p.tables.cu_seqlens_q = m.integers(DType::i32, {0, 1, 2, 5});
  expect_data_refused(p, "5");  // beyond q's rows
}

TEST(BadData, HeadsThatDoNotDivide) {
  cases::Maker m("heads");
  AttentionParams p{.q = m.normal(DType::f32, {1, 4, 3, 32}),
                    .k = m.normal(DType::f32, {1, 4, 2, 32}),
                    .v = m.normal(DType::f32, {1, 4, 2, 32}),
                    .out = m.filled(DType::f32, {1, 4, 3, 32}, 9)};
  expect_data_refused(p, "3");
}

TEST(BadData, RopePositionBeyondTheTable) {
  cases::Maker m("rope");
  RopeParams p{.x = m.normal(DType::f32, {2, 1, 8}),
               .positions = m.integers(DType::i32, {0, 16}),
               .cos = m.normal(DType::f32, {16, 4}),
               .sin = m.normal(DType::f32, {16, 4}),
               .out = m.filled(DType::f32, {2, 1, 8}, 9)};
  expect_data_refused(p, "16");
  EXPECT_EQ(p.out.as<float>()[0], 9);
}

}  // namespace
}  // namespace kf
