// Bad input, for every op by reflection: a missing, misplaced or mistyped operand is an invalid_argument that names it,
// and outputs stay as they were. What is particular to an op follows below.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
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
    for (const Slot& s : slots_of(op, i.params.data()))
      empty = empty || (s.tensor->present() && s.tensor->numel() == 0);
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
    return t.is_contiguous() && p ? std::vector<unsigned char>(p, p + t.nbytes())
                                  : std::vector<unsigned char>{};
  };
  for (const Slot& slot : slots_of(op, s.instance.params.data()))
    if (slot.tensor->present() && slot.role != Role::in && slot.name != s.slot)
      before[slot.name] = bytes_of(*slot.tensor);
  try {
    d.run(op, s.instance.params.data(), {.families = ~0u});
    FAIL() << op_name(op) << ": " << s.what << " of " << s.slot << " was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument) << e.what();
    EXPECT_NE(std::string(e.what()).find(op_name(op)), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("expected"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(s.slot), std::string::npos) << e.what();
  }
  for (const Slot& slot : slots_of(op, s.instance.params.data()))
    if (before.contains(slot.name))
      EXPECT_EQ(bytes_of(*slot.tensor), before[slot.name]) << slot.name << " was changed";
}

class BadInput : public testing::TestWithParam<Op> {
 protected:
  // One spoiled call for each operand that `spoil` says it spoiled.
  void for_each_slot(const std::string& what, const std::function<bool(const Slot&)>& spoil) {
    Dispatcher d(backend_by_name("cpu"));
    const Case& c = good_case(GetParam());
    // A good call of the layout is planned already: what is wrong must show all the same.
    Instance good = cases::instantiate(c);
    d.run(c.op, good.params.data(), {.families = ~0u});
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

TEST_P(BadInput, TooFewDimensions) {
  for_each_slot("a dimension less", [](const Slot& s) {
    if (!s.tensor->present() || s.tensor->rank < 1) return false;
    // The rows of an elementwise op may have any number of dimensions.
    if (s.role == Role::in && s.tensor->rank > 1 && std::string_view(s.name) == "x") return false;
    --s.tensor->rank;
    return true;
  });
}

TEST_P(BadInput, NoDimensions) {
  for_each_slot("the shape of a scalar", [](const Slot& s) {
    if (!s.tensor->present()) return false;
    s.tensor->rank = 0;
    return true;
  });
}

// infer() meets operands before anyone has looked at them.
TEST_P(BadInput, InferenceTakesOperandsOfAnyRank) {
  const Case& c = good_case(GetParam());
  const std::size_t n = slots_of(c.op, cases::instantiate(c).params.data()).size();
  for (std::size_t i = 0; i < n; ++i) {
    for (const int rank : {-1, 0, 1, kMaxRank}) {
      Instance instance = cases::instantiate(c);
      std::vector<Slot> slots = slots_of(c.op, instance.params.data());
      if (slots[i].role == Role::out) continue;
      for (const Slot& s : slots)
        if (s.role == Role::out) *s.tensor = TensorView{};
      slots[i].tensor->rank = rank;
      for (int d = 0; d < kMaxRank; ++d) slots[i].tensor->shape[d] = 2;
      EXPECT_NO_THROW(op_info(c.op).infer(instance.params.data())) << slots[i].name << " of rank " << rank;
      if (rank == 0)
        EXPECT_THROW(op_info(c.op).validate(instance.params.data()), Error) << slots[i].name << ", a scalar";
    }
  }
}

TEST_P(BadInput, NoMemory) {
  Dispatcher d(backend_by_name("cpu"));
  for_each_slot("a null pointer", [&](const Slot& s) {
    if (!s.tensor->present()) return false;
    s.tensor->data = nullptr;
    return true;
  });
  // Planning does not look at memory.
  Instance instance = cases::instantiate(good_case(GetParam()));
  for (const Slot& s : slots_of(GetParam(), instance.params.data())) s.tensor->data = nullptr;
  EXPECT_NO_THROW(d.plan(GetParam(), instance.params.data(), {.families = ~0u}));
  EXPECT_NO_THROW(d.explain(GetParam(), instance.params.data()));
}

TEST_P(BadInput, MisalignedMemory) {
  for_each_slot("an odd address", [](const Slot& s) {
    if (!s.tensor->present() || dtype_alignment(s.tensor->dtype) == 1) return false;
    s.tensor->data = s.tensor->as<char>() + 1;
    return true;
  });
}

TEST_P(BadInput, MoreElementsThanCanBeCounted) {
  for_each_slot("2^80 elements of one", [](const Slot& s) {
    if (!s.tensor->present() || s.tensor->rank < 2) return false;
    for (int i = 0; i < 2; ++i) {
      s.tensor->shape[i] = std::int64_t{1} << 40;
      s.tensor->strides[i] = 0;
    }
    return true;
  });
}

TEST_P(BadInput, NegativeDimension) {
  for_each_slot("a negative dimension", [](const Slot& s) {
    if (!s.tensor->present() || s.tensor->rank < 1) return false;
    s.tensor->shape[0] = -1;
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
    if (s.role == Role::in || !s.tensor->present() || s.tensor->rank < 1 || s.tensor->shape[0] < 2)
      return false;
    s.tensor->strides[0] = 0;
    return true;
  });
}

std::vector<Op> ops() {
  std::vector<Op> out;
  for (const OpInfo& info : all_ops()) out.push_back(info.op);
  return out;
}
INSTANTIATE_TEST_SUITE_P(, BadInput, testing::ValuesIn(ops()),
                         [](const auto& info) { return op_name(info.param); });

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
      EmbeddingParams{
          .ids = m.integers(DType::i32, {3, 9}), .table = m.normal(DType::f32, {8, 4}), .out = out},
      "9");
  expect_data_refused(
      EmbeddingParams{
          .ids = m.integers(DType::i32, {-1, 2}), .table = m.normal(DType::f32, {8, 4}), .out = out},
      "-1");
  EXPECT_EQ(out.as<float>()[0], 5);
}

TEST(BadData, SlotBeyondTheCache) {
  cases::Maker m("slots");
  AppendKvParams p{.k = m.normal(DType::f32, {2, 1, 8}),
                   .v = m.normal(DType::f32, {2, 1, 8}),
                   .slot_mapping = m.integers(DType::i64, {0, 9}),
                   .k_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9),
                   .v_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9)};
  expect_data_refused(p, "9");
  EXPECT_EQ(p.k_cache.as<float>()[0], 9) << "a good slot before the bad one was written";
}

// One query over five keys, the last of them on a page that the pool of three has not.
AttentionParams paged_call(cases::Maker& m) {
  return {.q = m.normal(DType::f32, {1, 2, 32}),
          .k = m.normal(DType::f32, {3, 1, 4, 32}),
          .v = m.normal(DType::f32, {3, 1, 4, 32}),
          .out = m.filled(DType::f32, {1, 2, 32}, 9),
          .tables = {.block_tables = m.table({{0, 3}}), .context_lens = m.integers(DType::i32, {5})}};
}

TEST(BadData, PageIdsAndLengthsOfAPagedCache) {
  cases::Maker m("pages");
  AttentionParams p = paged_call(m);
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
                    .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, 3, 1, 4}),
                               .cu_seqlens_k = m.integers(DType::i32, {0, 1, 2, 4})}};
  expect_data_refused(p, "got 1");
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

// What attention's features refuse: layouts once a plan, lengths at every call.
TEST(BadData, FeaturesOfAttention) {
  cases::Maker m("features");
  const AttentionParams good{.q = m.normal(DType::f32, {2, 4, 6, 32}),
                             .k = m.normal(DType::f32, {2, 9, 2, 32}),
                             .v = m.normal(DType::f32, {2, 9, 2, 16}),
                             .out = m.filled(DType::f32, {2, 4, 6, 16}, 9)};
  const auto refused = [&](const std::string& quoted, auto change) {
    AttentionParams p = good;
    change(p);
    expect_data_refused(p, quoted);
  };
  const auto mask = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
    return m.filled(dtype, shape, 1);
  };
  refused("window_left", [](auto& p) { p.window_left = -2; });
  refused("window_right", [](auto& p) { p.window_right = -7; });
  refused("softcap", [](auto& p) { p.softcap = -1; });
  refused("softcap", [](auto& p) { p.softcap = std::numeric_limits<float>::infinity(); });
  refused("softcap", [](auto& p) { p.softcap = std::numeric_limits<float>::quiet_NaN(); });
  refused("alibi_slopes", [&](auto& p) { p.alibi_slopes = m.normal(DType::f32, {2}); });
  refused("alibi_slopes", [&](auto& p) { p.alibi_slopes = m.normal(DType::f32, {3, 6}); });
  refused("alibi_slopes", [&](auto& p) { p.alibi_slopes = m.normal(DType::f16, {6}); });
  refused("alibi_slopes", [&](auto& p) { p.alibi_slopes = m.normal(DType::f32, {1, 2, 6}); });
  refused("sinks", [&](auto& p) { p.sinks = m.normal(DType::f32, {2}); });
  refused("sinks", [&](auto& p) { p.sinks = m.normal(DType::bf16, {6}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::f32, {4, 9}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::i32, {1, 1, 4, 9}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::f32, {1, 1, 4, 8}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::f32, {1, 2, 4, 9}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::f32, {3, 1, 4, 9}); });
  refused("attn_mask", [&](auto& p) { p.attn_mask = mask(DType::boolean, {2, 6, 3, 9}); });
  refused("attn_mask", [&](auto& p) {
    p.attn_mask = mask(DType::boolean, {2, 6, 4, 1});
    p.attn_mask.shape[3] = 9, p.attn_mask.strides[3] = 0;  // keys are never one for all
  });
  refused("out", [&](auto& p) { p.out = m.filled(DType::f32, {2, 4, 6, 32}, 9); });
  refused("v", [&](auto& p) { p.v = m.normal(DType::f32, {2, 8, 2, 16}); });
  for (const auto& [n, m] : {std::pair{1, 0}, {0, 4}, {5, 4}, {-1, 4}, {2, -4}})
    refused("keep_n", [&](auto& p) { p.sparsity.keep_n = n, p.sparsity.keep_m = m; });
  // Four queries and nine keys in blocks of 2 and 4.
  const auto layout = [&](DType dtype, std::initializer_list<std::int64_t> shape, std::int64_t q = 2,
                          std::int64_t k = 4) {
    return SparseKeys{.block_layout = m.filled(dtype, shape, 1), .block_size_q = q, .block_size_k = k};
  };
  refused("block_size_k", [](auto& p) { p.sparsity.block_size_k = 4; });
  refused("block_size_q", [](auto& p) { p.sparsity.block_size_q = 4; });
  refused("block_size_k", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 1, 2, 3}, 2, 0); });
  refused("block_size_k", [&](auto& p) {
    p.sparsity = layout(DType::boolean, {1, 1, 2, 3}, 2, std::int64_t{1} << 40);
  });
  refused("block_size_q", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 1, 2, 3}, -1); });
  refused("block_layout", [&](auto& p) { p.sparsity = layout(DType::boolean, {2, 3}); });
  refused("got f32", [&](auto& p) { p.sparsity = layout(DType::f32, {1, 1, 2, 3}); });
  refused("batch, or 1", [&](auto& p) { p.sparsity = layout(DType::boolean, {3, 1, 2, 3}); });
  refused("num_kv_heads", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 3, 2, 3}); });
  refused("num_kv_heads", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 0, 2, 3}); });
  refused("query blocks", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 1, 3, 3}); });
  refused("one query block", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 1, 2, 3}, 0); });
  refused("key blocks", [&](auto& p) { p.sparsity = layout(DType::boolean, {1, 1, 2, 2}); });
  refused("block_layout", [&](auto& p) {
    p.sparsity = layout(DType::boolean, {1, 1, 2, 6});
    p.sparsity.block_layout.shape[3] = 3, p.sparsity.block_layout.strides[3] = 2;
  });
  for (const auto& [second, quoted] :
       {std::pair{3, "got 3"}, {1, "ascending"}, {0, "ascending"}, {-2, "got -2"}})
    refused(quoted, [&](auto& p) {
      p.sparsity = layout(DType::i32, {1, 1, 2, 2});
      cases::set_element(p.sparsity.block_layout, 1, second);
      cases::set_element(p.sparsity.block_layout, 3, -1);
    });
  refused("after -1", [&](auto& p) {
    p.sparsity = layout(DType::i32, {1, 1, 2, 2});
    cases::set_element(p.sparsity.block_layout, 2, -1);
    cases::set_element(p.sparsity.block_layout, 1, 2);
  });
  EXPECT_EQ(good.out.as<float>()[0], 9);

  AttentionParams packed{.q = m.normal(DType::f32, {5, 2, 32}),
                         .k = m.normal(DType::f32, {12, 2, 32}),
                         .v = m.normal(DType::f32, {12, 2, 32}),
                         .out = m.filled(DType::f32, {5, 2, 32}, 9),
                         .tables = {.cu_seqlens_q = m.integers(DType::i32, {0, 2, 5}),
                                    .cu_seqlens_k = m.integers(DType::i32, {0, 3, 12})}};
  packed.attn_mask = mask(DType::f32, {1, 5, 9});
  EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(packed));
  packed.out = m.filled(DType::f32, {5, 2, 32}, 9);
  packed.attn_mask = mask(DType::f32, {1, 5, 8});
  expect_data_refused(packed, "the keys of sequence 1");
  packed.attn_mask = mask(DType::f32, {1, 4, 9});
  expect_data_refused(packed, "total_q");
  EXPECT_EQ(packed.out.as<float>()[0], 9);
  packed.attn_mask = {};
  packed.sparsity = {
      .block_layout = m.filled(DType::boolean, {1, 1, 9, 9}, 1), .block_size_q = 1, .block_size_k = 1};
  packed.sparsity.block_layout.shape[3] = 3;
  expect_data_refused(packed, "key blocks");
  packed.sparsity.block_layout.shape[3] = 9, packed.sparsity.block_layout.shape[2] = 1;
  expect_data_refused(packed, "query blocks");
}

// What scales and zeros of quantized keys and values may not be.
TEST(BadData, QuantizedKeysAndValues) {
  cases::Maker m("quantized");
  const auto tensor = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
    m.storage().push_back(Tensor::zeros(dtype, shape));
    return m.storage().back().view();
  };
  const auto with = [&](DType dtype) {
    return AttentionParams{.q = m.normal(DType::f32, {2, 4, 6, 32}),
                           .k = tensor(dtype, {2, 9, 2, 32}),
                           .v = tensor(dtype, {2, 9, 2, 32}),
                           .out = m.filled(DType::f32, {2, 4, 6, 32}, 9),
                           .k_quantization = {.scales = tensor(DType::f32, {2, 9, 2, 1})},
                           .v_quantization = {.scales = tensor(DType::f16, {1, 1, 2, 1})}};
  };
  const auto refused = [&](DType dtype, const std::string& quoted, auto change) {
    AttentionParams p = with(dtype);
    change(p);
    expect_data_refused(p, quoted);
    EXPECT_EQ(p.out.as<float>()[0], 9);
  };
  for (const DType dtype : {DType::int4, DType::i8, DType::fp8_e4m3, DType::fp8_e5m2}) {
    EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(with(dtype)));
    refused(dtype, "k_scales: expected scales, since k is", [](auto& p) { p.k_quantization = {}; });
    refused(dtype, "v_scales: expected scales, since v is", [](auto& p) { p.v_quantization = {}; });
    refused(dtype, "k_scales: expected f32, f16 or bf16", [&](auto& p) {
      p.k_quantization.scales = tensor(DType::i8, {2, 9, 2, 1});
    });
    refused(dtype, "k_scales: expected shape [2 or 1, 9 or 1, 2 or 1, 1]", [&](auto& p) {
      p.k_quantization.scales = tensor(DType::f32, {2, 8, 2, 1});
    });
    refused(dtype, "k_scales: expected shape", [&](auto& p) {
      p.k_quantization.scales = tensor(DType::f32, {9, 2, 1});
    });
    refused(dtype, "v_scales: expected shape [2 or 1, 9 or 1, 2 or 1, 2]",
            [&](auto& p) { p.v_quantization.group_size = 16; });
    for (const std::int64_t size : {-16, 8, 24, 48, 64})
      refused(dtype, "k_group_size: expected 0", [&](auto& p) { p.k_quantization.group_size = size; });
    refused(dtype, "v: expected", [&](auto& p) { p.v = m.normal(DType::f32, {2, 9, 2, 32}); });
    refused(dtype, "k_scales: expected a contiguous last dimension", [&](auto& p) {
      p.k_quantization = {.scales = tensor(DType::f32, {2, 9, 2, 4}), .group_size = 16};
      p.k_quantization.scales.shape[3] = 2, p.k_quantization.scales.strides[3] = 2;
    });
  }
  refused(DType::i8, "k_zeros: expected i8", [&](auto& p) {
    p.k_quantization.zeros = tensor(DType::f32, {2, 9, 2, 1});
  });
  refused(DType::int4, "k_zeros: expected shape", [&](auto& p) {
    p.k_quantization.zeros = tensor(DType::i8, {2, 9, 3, 1});
  });
  refused(DType::fp8_e4m3, "v_zeros: expected none, since v is fp8_e4m3", [&](auto& p) {
    p.v_quantization.zeros = tensor(DType::i8, {1, 1, 2, 1});
  });
  refused(DType::f32, "k_scales: expected none, since k is f32", [](auto&) {});
  refused(DType::i32, "k: expected f32, f16 or bf16; int4", [](auto&) {});
  refused(DType::int4, "k: expected rows of whole bytes", [&](auto& p) {
    p.k = tensor(DType::int4, {2, 9, 2, 34});
    p.k.shape[3] = 32, p.k.strides[2] = 33;
  });
}

// What the scales of a quantized cache may not be, beyond that.
TEST(BadData, QuantizedCaches) {
  cases::Maker m("quantized caches");
  const auto tensor = [&](DType dtype, std::initializer_list<std::int64_t> shape) {
    m.storage().push_back(Tensor::zeros(dtype, shape));
    return m.storage().back().view();
  };
  const AppendKvParams good{.k = m.normal(DType::f32, {3, 2, 32}),
                            .v = m.normal(DType::f32, {3, 2, 32}),
                            .slot_mapping = m.integers(DType::i64, {5, -1, 2}),
                            .k_cache = tensor(DType::i8, {2, 2, 4, 32}),
                            .v_cache = tensor(DType::i8, {2, 2, 4, 32}),
                            .k_cache_quantization = {.scales = tensor(DType::f32, {2, 2, 4, 1})},
                            .v_cache_quantization = {.scales = tensor(DType::f32, {1, 1, 1, 1})}};
  const auto refused = [&](const std::string& quoted, auto change) {
    AppendKvParams p = good;
    change(p);
    expect_data_refused(p, quoted);
    EXPECT_EQ(p.k_cache.as<std::int8_t>()[0], 0);
  };
  refused("k_cache_scales: expected scales", [](auto& p) { p.k_cache_quantization = {}; });
  refused("k_cache_scales: expected 2 and 4 in dimensions 0 and 2", [&](auto& p) {
    p.k_cache_quantization.scales = tensor(DType::f32, {2, 2, 1, 1});
  });
  refused("v_cache_scales: expected 2 and 4 in dimensions 0 and 2", [&](auto& p) {
    p.v_cache_quantization.scales = tensor(DType::f32, {1, 2, 4, 1});
  });
  refused("k_cache_scales: expected strides", [&](auto& p) { p.k_cache_quantization.scales.strides[1] = 0; });
  refused("k_cache_group_size", [](auto& p) { p.k_cache_quantization.group_size = 24; });
  refused("k_cache_zeros: expected shape [2, 2, 4, 1], that of the scales", [&](auto& p) {
    p.k_cache_quantization.zeros = tensor(DType::i8, {1, 2, 1, 1});
  });
  refused("v_cache_scales", [](auto& p) { p.v_cache_quantization.scales = p.k_cache_quantization.scales; });
  refused("k_cache: expected f32, f16 or bf16; int4", [&](auto& p) {
    p.k_cache = p.v_cache = tensor(DType::i32, {2, 2, 4, 32});
  });
  EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(good));
}

TEST(BadData, OneSlotForTwoTokens) {
  cases::Maker m("twice");
  AppendKvParams p{.k = m.normal(DType::f32, {4, 1, 8}),
                   .v = m.normal(DType::f32, {4, 1, 8}),
                   .slot_mapping = m.integers(DType::i64, {5, -1, 2, 5}),
                   .k_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9),
                   .v_cache = m.filled(DType::f32, {2, 1, 4, 8}, 9)};
  expect_data_refused(p, "slot 5 twice");
  EXPECT_EQ(p.k_cache.as<float>()[0], 9);
  p.slot_mapping = m.integers(DType::i32, {5, -1, 2, -1});  // padding is no slot
  EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(p));
}

TEST(BadData, CachesThatOverlap) {
  cases::Maker m("caches");
  // K and V pages in turns, as one pool has them, do not overlap although their spans do.
  const TensorView pool = m.filled(DType::f32, {3, 2, 1, 4, 8}, 9);
  const auto half = [&](std::int64_t i) {
    TensorView t = pool.slice(1, i, i + 1);
    t.rank = 4;
    t.shape = {3, 1, 4, 8};
    t.strides = {pool.stride(0), pool.stride(2), pool.stride(3), pool.stride(4)};
    return t;
  };
  AppendKvParams p{.k = m.normal(DType::f32, {1, 1, 8}),
                   .v = m.normal(DType::f32, {1, 1, 8}),
                   .slot_mapping = m.integers(DType::i64, {4}),
                   .k_cache = half(0),
                   .v_cache = half(1)};
  EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(p));
  p.v_cache = p.k_cache;
  expect_data_refused(p, "v_cache");
  p.v_cache.data = p.k_cache.as<float>() + 8;  // a row on
  expect_data_refused(p, "v_cache");
  p.v_cache.shape[0] = p.k_cache.shape[0] = 2;
  p.v_cache.data = p.k_cache.as<float>() + pool.stride(0);  // a page on
  expect_data_refused(p, "v_cache");
}

TEST(BadData, OutputsThatShareMemory) {
  cases::Maker m("shared");
  RmsNormParams p{.x = m.normal(DType::f32, {2, 8}),
                  .weight = m.normal(DType::f32, {8}),
                  .residual = m.normal(DType::f32, {2, 8}),
                  .out = m.filled(DType::f32, {2, 8}, 9),
                  .residual_out = m.filled(DType::f32, {2, 8}, 9)};
  Dispatcher d(backend_by_name("cpu"));
  d.run(p);
  p.residual_out = p.out;
  EXPECT_THROW(d.run(p), Error);  // planned by then
  expect_data_refused(p, "residual_out");
  DequantizeParams q{.x = m.normal(DType::f32, {2, 32}), .out = m.filled(DType::f16, {2, 32}, 9)};
  d.run(q);
  q.out.data = q.x.data;
  EXPECT_THROW(d.run(q), Error);
  expect_data_refused(q, "out");
}

TEST(BadData, OutputsOverInputs) {
  cases::Maker m("over");
  Dispatcher d(backend_by_name("cpu"));
  const TensorView rows = m.normal(DType::f32, {3, 8});
  RmsNormParams norm{
      .x = rows.slice(0, 0, 2), .weight = m.normal(DType::f32, {8}), .out = rows.slice(0, 0, 2)};
  EXPECT_NO_THROW(d.run(norm));  // in place
  norm.out = rows.slice(0, 1, 3);
  expect_data_refused(norm, "x");
  LinearParams layer{.x = m.normal(DType::f32, {8, 8}), .weight = m.normal(DType::f32, {8, 8})};
  layer.out = layer.weight;
  expect_data_refused(layer, "weight");
  layer.out = layer.x;
  expect_data_refused(layer, "x");

  // Slices of one tensor are apart.
  const TensorView merged = m.filled(DType::f32, {2, 12}, 9);
  const auto weight = [&](std::int64_t out) { return m.normal(DType::f32, {out, 8}); };
  QkvLinearParams qkv{.x = m.normal(DType::f32, {2, 8}),
                      .q_weight = weight(6),
                      .k_weight = weight(3),
                      .v_weight = weight(3),
                      .q = merged.slice(1, 0, 6),
                      .k = merged.slice(1, 6, 9),
                      .v = merged.slice(1, 9, 12)};
  EXPECT_NO_THROW(d.run(qkv));
  qkv.v = merged.slice(1, 8, 11);
  expect_data_refused(qkv, "v");
}

TEST(BadAttribute, EnumerationsAndEpsOfThePrologue) {
  cases::Maker m("attributes");
  LinearParams p{.x = m.normal(DType::f32, {2, 8}),
                 .weight = m.normal(DType::f32, {4, 8}),
                 .out = m.filled(DType::f32, {2, 4}, 9),
                 .prologue = {.norm = NormKind::rms, .norm_weight = m.normal(DType::f32, {8})}};
  for (const float eps : {-1.0f, NAN, INFINITY}) {
    p.prologue.eps = eps;
    expect_data_refused(p, "eps");
  }
  p.prologue.eps = 1e-5f;
  p.prologue.norm_weight_offset = NAN;
  expect_data_refused(p, "norm_weight_offset");
  p.prologue.norm = NormKind::layer;
  p.prologue.norm_weight_offset = 1;
  expect_data_refused(p, "norm is layer");
  BinaryParams b{
      .a = p.x, .b = p.x, .out = m.filled(DType::f32, {2, 8}, 9), .kind = static_cast<BinaryKind>(7)};
  expect_data_refused(b, "kind");
}

TEST(BadData, RowsOfBlocksThatStartInsideABlock) {
  cases::Maker m("blocks");
  DequantizeParams p{.x = m.normal(DType::q8_0, {3, 64}), .out = m.filled(DType::f32, {2, 32}, 9)};
  p.x.shape[0] = 2;
  p.x.shape[1] = 32;
  p.x.strides[0] = 48;
  expect_data_refused(p, "blocks of 32");
  p.x.strides[0] = 64;
  EXPECT_NO_THROW(Dispatcher(backend_by_name("cpu")).run(p));
}

TEST(BadData, ResultsTooLargeToCount) {
  TensorView x = TensorView::contiguous(nullptr, DType::f32, {1, 1});
  x.shape[0] = std::int64_t{1} << 40;
  x.strides[0] = 0;
  LinearParams p{.x = x, .weight = x};
  try {
    op_info(Op::linear).infer(&p);
    FAIL() << "inferred " << to_string(p.out);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::invalid_argument);
  }
}

// The tables of a device are its kernels' business: this dispatcher must not follow their addresses.
TEST(BadData, TablesOnADeviceAreNotRead) {
  cases::Maker m("device");
  AttentionParams p = paged_call(m);
  for (TensorView* t : {&p.tables.block_tables, &p.tables.context_lens}) {
    t->device = {DeviceType::cuda, 0};
    t->data = nullptr;
  }
  EXPECT_NO_THROW(op_info(Op::attention).validate_data(&p));
}

TEST(BadData, RopePositionBeyondTheTable) {
  cases::Maker m("rope");
  RopeParams p{.x = m.normal(DType::f32, {2, 1, 8}),
               .positions = m.integers(DType::i32, {0, 17}),
               .cos = m.normal(DType::f32, {16, 4}),
               .sin = m.normal(DType::f32, {16, 4}),
               .out = m.filled(DType::f32, {2, 1, 8}, 9)};
  expect_data_refused(p, "17");
  EXPECT_EQ(p.out.as<float>()[0], 9);
}

}  // namespace
}  // namespace kf
