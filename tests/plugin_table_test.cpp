// A plug-in's table: what is refused of it, and what its functions may do wrong. The tables are made here.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "backends/plugin/backend.h"
#include "backends/plugin/call.h"
#include "case.h"
#include "kf/kf.h"
#include "runner.h"

namespace kf {
namespace {

void say(kf_reason* reason, const char* text) { std::strcpy(reason->text, text); }

kf_status yes(const kf_row*, const kf_call*, const kf_plan_context*, kf_reason*) { return KF_OK; }

// out = x, of f32.
kf_status copy_x(const kf_row*, const kf_call* call, const kf_plan*, const kf_run_context*, kf_reason*) {
  const DLTensor& x = plugin::host().tensor(call, "x")->dl_tensor;
  std::memcpy(plugin::host().tensor(call, "out")->dl_tensor.data, x.data,
              static_cast<std::size_t>(x.shape[0] * x.shape[1]) * sizeof(float));
  return KF_OK;
}

// A table that fits, of one row; tests change it.
struct Table {
  const char* fields[6] = {"x", "out", nullptr};
  kf_row row{.struct_size = sizeof row};
  const kf_row* rows[2] = {&row, nullptr};
  kf_memory memory{.struct_size = sizeof memory};
  kf_plugin plugin{.struct_size = sizeof plugin};

  Table() {
    row.name = "made::copy";
    row.op = "activation";
    row.families = KF_FAMILY_FUSED;
    row.condition = "always";
    row.fields = fields;
    row.supports = yes;
    row.run = copy_x;
    plugin.name = "made";
    plugin.version = "1";
    plugin.device_type = "cpu";
    plugin.rows = rows;
    plugin.num_rows = 1;
    plugin.available = [](void*, kf_reason*) -> kf_status { return KF_OK; };
    plugin.capabilities = [](void*, std::int32_t, kf_capabilities*, kf_reason*) -> kf_status {
      return KF_OK;
    };
  }
  Table(const Table&) = delete;
  Backend backend() const { return plugin::make_backend(plugin, "made.so"); }
};

ActivationParams params() {
  static cases::Maker m("plugin");
  static const TensorView x = m.normal(DType::f32, {2, 4}), out = m.filled(DType::f32, {2, 4}, 9);
  return {.x = x, .out = out};
}

// Memory that the host cannot address: its addresses are shifted.
constexpr std::uintptr_t kShift = std::uintptr_t{1} << 62;
void* shifted(void* p) { return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(p) + kShift); }
void* back(const void* p) { return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(p) - kShift); }
int live_memory = 0;

void on_a_device(Table& t) {
  t.plugin.device_type = "mlu";
  t.plugin.memory = &t.memory;
  t.memory.context = &live_memory;
  t.memory.allocate = [](void* context, std::int32_t, std::size_t bytes, void*, void** memory,
                         kf_reason*) -> kf_status {
    ++*static_cast<int*>(context);
    *memory = shifted(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    return KF_OK;
  };
  t.memory.free = [](void* context, std::int32_t, void* memory, void*) {
    --*static_cast<int*>(context);
    std::free(back(memory));
  };
  t.memory.copy = [](void*, std::int32_t, void* to, const void* from, std::size_t bytes,
                     std::int32_t direction, void*, kf_reason*) -> kf_status {
    std::memcpy(direction == KF_COPY_TO_HOST ? to : back(to),
                direction == KF_COPY_TO_DEVICE ? from : back(from), bytes);
    return KF_OK;
  };
  t.memory.synchronize = [](void*, std::int32_t, void*, kf_reason*) -> kf_status { return KF_OK; };
  t.row.run = [](const kf_row*, const kf_call* call, const kf_plan*, const kf_run_context* context,
                 kf_reason*) -> kf_status {
    const DLTensor &x = plugin::host().tensor(call, "x")->dl_tensor,
                   &out = plugin::host().tensor(call, "out")->dl_tensor;
    if (static_cast<int>(x.device.device_type) != 12 || context->device != 0) return 77;  // kDLExtDev
    std::memcpy(back(out.data), back(x.data),
                static_cast<std::size_t>(x.shape[0] * x.shape[1]) * sizeof(float));
    return KF_OK;
  };
}

std::string refusal(const std::function<void(Table&)>& change) {
  Table t;
  change(t);
  try {
    t.backend();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::unavailable);
    EXPECT_TRUE(std::string(e.what()).starts_with("plug-in made.so: ")) << e.what();
    EXPECT_NE(std::string(e.what()).find("mistake in the plug-in"), std::string::npos) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "expected a refusal";
  return {};
}

TEST(PluginTable, ThatDoesNotFitIsRefused) {
  const struct {
    std::function<void(Table&)> change;
    const char* said;
  } kCases[] = {
      {[](Table& t) { t.plugin.struct_size = 0; }, "the table: struct_size: expected sizeof, from "},
      {[](Table& t) { t.plugin.struct_size -= 8; }, "the table: struct_size: expected sizeof, from "},
      {[](Table& t) { t.plugin.struct_size = std::size_t{1} << 40; }, " to 4096, got 1099511627776"},
      {[](Table& t) { t.row.struct_size = 1; }, "rows[0]: struct_size: expected sizeof, from "},
      {[](Table& t) { t.plugin.memory = &t.memory, t.memory.struct_size = 3; },
       "memory: struct_size: expected sizeof, from "},
      {[](Table& t) { t.plugin.name = nullptr; }, "name: expected lower-case letters, digits and _, got ''"},
      {[](Table& t) { t.plugin.name = "My Card"; }, "got 'My Card'"},
      {[](Table& t) { t.plugin.version = nullptr; }, "version: expected a string"},
      {[](Table& t) { t.plugin.device_type = "gpu"; },
       "expected cpu, cuda, rocm, ascend, mlu or kunlun, got 'gpu'"},
      {[](Table& t) { t.plugin.available = nullptr; }, "available: expected a function"},
      {[](Table& t) { t.plugin.capabilities = nullptr; }, "capabilities: expected a function"},
      {[](Table& t) { t.plugin.num_rows = 0; }, "rows: expected at least one row"},
      {[](Table& t) { t.plugin.num_rows = 2; }, "rows[1]: expected a row, got null"},
      {[](Table& t) { t.plugin.memory = &t.memory; },
       "memory: expected allocate, free, copy and synchronize, got 0 of the 4"},
      {[](Table& t) {
         on_a_device(t);
         t.memory.free_host = [](void*, void*) {};
       },
       "allocate_host and free_host, or neither"},
      {[](Table& t) { t.row.name = "copy"; }, "a row's name: expected made::..., got 'copy'"},
      {[](Table& t) { t.row.op = "abacus"; }, "made::copy: op: expected one of linear, binary,"},
      {[](Table& t) { t.row.op = nullptr; }, "got ''"},
      {[](Table& t) { t.row.families = 0; }, "families: expected bits of KF_FAMILY_"},
      {[](Table& t) { t.row.families = 1u << 20; }, "got 0x100000"},
      {[](Table& t) { t.row.flags = 8; }, "flags: expected bits of KF_ROW_"},
      {[](Table& t) { t.row.condition = ""; }, "condition: expected when the row serves"},
      {[](Table& t) { t.row.supports = nullptr; }, "supports: expected a function"},
      {[](Table& t) { t.row.run = nullptr; }, "run: expected a function"},
      {[](Table& t) { t.row.free_plan = [](const kf_row*, kf_plan*) {}; }, "plan and free_plan, or neither"},
      {[](Table& t) { t.row.fields = nullptr; }, "fields: expected the names of operands"},
      {[](Table& t) { t.fields[1] = "kind", t.fields[2] = nullptr; },
       "expected 'out', which every call of activation has"},
      {[](Table& t) { t.fields[2] = "shape", t.fields[3] = nullptr; },
       "expected those of activation: x, out, kind, static_scale, out_scales, out_dtype, got 'shape'"},
  };
  for (const auto& c : kCases) {
    const std::string said = refusal(c.change);
    EXPECT_NE(said.find(c.said), std::string::npos) << said << "\nexpected: " << c.said;
  }
  const std::string twice = refusal([](Table& t) {
    t.rows[1] = &t.row;
    t.plugin.num_rows = 2;
  });
  EXPECT_NE(twice.find("made::copy: expected a name of its own"), std::string::npos) << twice;
}

// A table of a header to come, which has members that this kf does not know.
TEST(PluginTable, OfANewerHeaderIsTakenWhereItAddsNothing) {
  struct {
    kf_plugin plugin;
    void* added = nullptr;
  } newer;
  Table t;
  newer.plugin = t.plugin;
  newer.plugin.struct_size = sizeof newer;
  EXPECT_EQ(plugin::make_backend(newer.plugin, "made.so").name, "made");
  newer.added = &t;
  try {
    plugin::make_backend(newer.plugin, "made.so");
    ADD_FAILURE() << "expected a refusal";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("or zeros beyond, since this kf"), std::string::npos) << e.what();
  }
}

TEST(PluginTable, WhatKfMakesSaysItsSize) {
  EXPECT_TRUE(KF_HAS(&plugin::host(), kf_host, choice));
  kf_host shorter = plugin::host();
  shorter.struct_size = offsetof(kf_host, choice);
  EXPECT_FALSE(KF_HAS(&shorter, kf_host, choice));
  Table t;
  t.plugin.capabilities = [](void*, std::int32_t, kf_capabilities* c, kf_reason*) -> kf_status {
    return c->struct_size == sizeof *c ? KF_OK : 77;
  };
  t.row.supports = [](const kf_row*, const kf_call*, const kf_plan_context* c, kf_reason*) -> kf_status {
    return c->struct_size == sizeof *c ? KF_OK : 77;
  };
  t.row.free_plan = [](const kf_row*, kf_plan*) {};
  t.row.plan = [](const kf_row*, const kf_call*, const kf_plan_context* c, kf_planned* planned,
                  kf_reason*) -> kf_status {
    return c->struct_size == sizeof *c && planned->struct_size == sizeof *planned ? KF_OK : 77;
  };
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan*, const kf_run_context* c,
                 kf_reason*) -> kf_status { return c->struct_size == sizeof *c ? KF_OK : 77; };
  const Backend b = t.backend();
  EXPECT_NO_THROW(Dispatcher(b).run(params()));
}

TEST(PluginTable, FieldsThatChangeWithoutAPlanMustBeListed) {
  const std::string said = refusal([](Table& t) {
    static const char* const fields[] = {"logits", "ids", nullptr};
    t.row.op = "sample";
    t.row.fields = fields;
  });
  EXPECT_NE(said.find("which every call of sample has"), std::string::npos) << said;
}

// Every op fits into what a call is made of, with names that are found.
TEST(PluginTable, EveryOpHasRoom) {
  for (const OpInfo& info : all_ops()) {
    const AnyParams params(info.op);
    const Fields fields(params);
    for (const Field& f : fields) EXPECT_EQ(fields.find(f.name), &f) << info.name << ": " << f.name;
    EXPECT_GT(fields.size(), 1u) << info.name;
    EXPECT_LT(fields.size() + 16, kMaxFields) << info.name << " leaves little room";
  }
}

// What a call over the row says, and its code.
std::pair<ErrorCode, std::string> failure(const Table& t, const ActivationParams& p = params()) {
  const Backend b = t.backend();
  try {
    Dispatcher d(b);
    d.run(p);
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
  ADD_FAILURE() << "expected a failure";
  return {};
}

void expect_failure(const Table& t, ErrorCode code, const std::string& text) {
  const auto [got, said] = failure(t);
  EXPECT_EQ(got, code) << said;
  EXPECT_NE(said.find(text), std::string::npos) << said;
}

TEST(PluginRow, Serves) {
  const Table t;
  const Backend b = t.backend();
  Dispatcher d(b);
  const ActivationParams p = params();
  d.run(p);
  EXPECT_EQ(std::memcmp(p.x.data, p.out.data, 32), 0);
  // It reads no kind: silu, the default, only.
  ActivationParams other = p;
  other.kind = Activation::relu;
  const auto [code, said] = failure(t, other);
  EXPECT_EQ(code, ErrorCode::not_implemented);
  EXPECT_NE(said.find("made::copy: kind: this row takes calls without it"), std::string::npos) << said;
}

TEST(PluginRow, ThatFailsIsAnErrorOfTheCall) {
  Table t;
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan*, const kf_run_context*,
                 kf_reason* reason) -> kf_status {
    say(reason, "the card is on fire");
    return KF_UNAVAILABLE;
  };
  expect_failure(t, ErrorCode::unavailable, "kernel made::copy: run: the card is on fire");
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan*, const kf_run_context*,
                 kf_reason* reason) -> kf_status {
    std::memset(reason->text, 'a', sizeof reason->text);  // without its end
    return KF_INVALID_ARGUMENT;
  };
  expect_failure(t, ErrorCode::invalid_argument, std::string(511, 'a'));
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan*, const kf_run_context*,
                 kf_reason*) -> kf_status { return 77; };
  expect_failure(t, ErrorCode::unavailable, "kernel made::copy: run: expected a status from 0 to 5, got 77");
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan*, const kf_run_context*,
                 kf_reason*) -> kf_status { throw 1; };
  expect_failure(t, ErrorCode::unavailable, "run: expected a status, got an exception");
  t.row.run = [](const kf_row*, const kf_call* call, const kf_plan*, const kf_run_context*,
                 kf_reason*) -> kf_status {
    plugin::host().number(call, "eps");
    return KF_OK;
  };
  expect_failure(t, ErrorCode::unavailable, "run asked for 'eps', which is not among the fields");
  t.row.run = [](const kf_row*, const kf_call* call, const kf_plan*, const kf_run_context*,
                 kf_reason*) -> kf_status {
    return plugin::host().integer(call, "x") == 0 && plugin::host().tensor(call, nullptr) == nullptr ? KF_OK
                                                                                                     : 77;
  };
  expect_failure(t, ErrorCode::unavailable, "run asked for 'x', which is not among the fields of that kind");
  t.row.run = copy_x;
  const Backend b = t.backend();
  EXPECT_NO_THROW(Dispatcher(b).run(params())) << "the process goes on";
}

TEST(PluginRow, ThatRefuses) {
  Table t;
  t.row.supports = [](const kf_row*, const kf_call*, const kf_plan_context*, kf_reason* reason) -> kf_status {
    say(reason, "only on Sundays");
    return KF_NOT_IMPLEMENTED;
  };
  expect_failure(t, ErrorCode::not_implemented, "\n  made::copy: only on Sundays");
  t.row.supports = [](const kf_row*, const kf_call*, const kf_plan_context*, kf_reason*) -> kf_status {
    return KF_NOT_IMPLEMENTED;
  };
  expect_failure(t, ErrorCode::not_implemented, "kernel made::copy: supports: failed without a reason");
  t.row.supports = [](const kf_row*, const kf_call*, const kf_plan_context*, kf_reason*) -> kf_status {
    return -1;
  };
  expect_failure(t, ErrorCode::not_implemented, "supports: expected a status from 0 to 5, got -1");
}

int live_plans = 0;

TEST(PluginRow, PlansAreFreedWhateverComesOfThem) {
  Table t;
  static int one = 1;
  t.row.context = &one;
  t.row.free_plan = [](const kf_row* row, kf_plan*) { live_plans -= *static_cast<const int*>(row->context); };
  t.row.plan = [](const kf_row*, const kf_call*, const kf_plan_context*, kf_planned* planned,
                  kf_reason*) -> kf_status {
    ++live_plans;
    static int memory;
    planned->plan = reinterpret_cast<kf_plan*>(&memory);
    planned->workspace_bytes = 100;
    planned->launches = 3;
    planned->graph_safe = 0;
    return KF_OK;
  };
  t.row.run = [](const kf_row*, const kf_call*, const kf_plan* plan, const kf_run_context* context,
                 kf_reason*) -> kf_status {
    return plan && context->workspace && reinterpret_cast<std::uintptr_t>(context->workspace) % 64 == 0
               ? KF_OK
               : 77;
  };
  {
    const Backend b = t.backend();
    Dispatcher d(b);
    d.run(params());
    const auto plan = d.plan(params());
    EXPECT_EQ(plan->launches(), 3);
    EXPECT_EQ(plan->workspace_bytes(), 100u);
    EXPECT_FALSE(plan->graph_safe());
    EXPECT_EQ(live_plans, 1) << "one for the layout";
  }
  EXPECT_EQ(live_plans, 0);
  t.row.plan = [](const kf_row*, const kf_call*, const kf_plan_context*, kf_planned* planned,
                  kf_reason* reason) -> kf_status {
    ++live_plans;
    planned->plan = reinterpret_cast<kf_plan*>(reason);
    say(reason, "no room");
    return KF_RESOURCE_EXHAUSTED;
  };
  expect_failure(t, ErrorCode::resource_exhausted, "kernel made::copy: plan: no room");
  EXPECT_EQ(live_plans, 0);
}

TEST(PluginDevice, ThatIsNotHereSaysWhy) {
  Table t;
  t.plugin.available = [](void*, kf_reason* reason) -> kf_status {
    say(reason, "no driver: install it");
    return KF_UNAVAILABLE;
  };
  expect_failure(t, ErrorCode::unavailable, "backend made: no driver: install it");
  t.plugin.available = [](void*, kf_reason*) -> kf_status { return 99; };
  expect_failure(t, ErrorCode::unavailable, "expected a status from 0 to 5, got 99");
}

TEST(PluginDevice, MemoryGoesThroughItsHooks) {
  Table t;
  on_a_device(t);
  {
    const Backend b = t.backend();
    const Backend* const all[] = {&backend_by_name("cpu"), &b};
    DispatcherSet set({}, all);
    const Device device{DeviceType::mlu, 0};
    Dispatcher& d = set.on(device);
    const StoredTensor x = d.make_tensor(DType::f32, std::vector<std::int64_t>{2, 4}),
                       out = d.make_tensor(DType::f32, std::vector<std::int64_t>{2, 4});
    const ActivationParams host = params();
    d.copy(x.view.data, host.x.data, 32, CopyDirection::to_device);
    const ActivationParams p{.x = x.view, .out = out.view};
    set.serving(Op::activation, &p).run(p);
    std::vector<float> result(8);
    d.copy(result.data(), out.view.data, 32, CopyDirection::to_host);
    d.synchronize();
    EXPECT_EQ(std::memcmp(result.data(), host.x.data, 32), 0);
    EXPECT_EQ(live_memory, 2);
  }
  EXPECT_EQ(live_memory, 0);
}

TEST(PluginDevice, HooksThatFail) {
  Table t;
  on_a_device(t);
  t.memory.synchronize = [](void*, std::int32_t, void*, kf_reason* reason) -> kf_status {
    say(reason, "page fault at 0x10");
    return KF_INVALID_ARGUMENT;
  };
  t.memory.allocate = [](void*, std::int32_t, std::size_t, void*, void**, kf_reason* reason) -> kf_status {
    say(reason, "64 GB in use");
    return KF_RESOURCE_EXHAUSTED;
  };
  const auto said = [](const auto& call) {
    try {
      call();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  {
    const Backend b = t.backend();
    Dispatcher d(b);
    EXPECT_EQ(said([&] { d.synchronize(); }), "backend made: synchronize: page fault at 0x10");
    EXPECT_EQ(said([&] { d.allocate(8); }), "backend made: allocate: 64 GB in use");
  }
  t.memory.allocate = [](void*, std::int32_t, std::size_t, void*, void** memory, kf_reason*) -> kf_status {
    *memory = reinterpret_cast<void*>(std::uintptr_t{8});
    return KF_OK;
  };
  const Backend b = t.backend();
  Dispatcher d(b);
  EXPECT_NE(said([&] { d.allocate(8); }).find("expected 64-byte aligned memory, got 0x8"), std::string::npos);
}

TEST(PluginDevice, ItsClockIsUsed) {
  Table t;
  double reading = 1.5;
  t.plugin.context = &reading;
  t.plugin.time = [](void* context, std::int32_t, kf_enqueue enqueue, void* argument, double* milliseconds,
                     kf_reason*) -> kf_status {
    *milliseconds = *static_cast<double*>(context);
    return enqueue(argument, argument);
  };
  const Backend b = t.backend();
  void* stream = nullptr;
  EXPECT_EQ(b.time(0, [&](void* s) { stream = s; }), 1.5);
  EXPECT_NE(stream, nullptr);
  EXPECT_THROW(b.time(0, [](void*) { throw_invalid("of the caller"); }), Error);
}

}  // namespace
}  // namespace kf
