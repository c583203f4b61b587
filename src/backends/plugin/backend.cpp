#include "backends/plugin/backend.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <set>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/plugin/call.h"
#include "backends/plugin/status.h"
#include "kf/dispatch.h"

namespace kf::plugin {
namespace {

constexpr DeviceType kDeviceTypes[] = {DeviceType::cpu,    DeviceType::cuda, DeviceType::rocm,
                                       DeviceType::ascend, DeviceType::mlu,  DeviceType::kunlun};

// What a struct's size was when this version of the ABI began: no plug-in has a smaller one. A struct that grows gets a
// specialization with its old size.
template <class S>
inline constexpr std::size_t kFirstSize = sizeof(S);
constexpr std::size_t kMaxSize = 4096;  // more is no size, but what lay there

// A row as the plug-in has it, which its functions are given, and as this kf reads it.
struct RowTable {
  const kf_row* theirs;
  kf_row row;
};

// Checks of the table.

class Table {
 public:
  Table(const kf_plugin& plugin, const std::string& path) : path_(path), plugin_(sized("the table", plugin)) {
    check_name();
    if (!plugin_.version) fail("version", "a string", "null");
    device_type_ = named_device_type();
    if (!plugin_.available) fail("available", "a function", "null");
    if (!plugin_.capabilities) fail("capabilities", "a function", "null");
    if (plugin_.memory) check_memory();
    check_rows();
  }
  // As this kf has them: what a plug-in of an older header does not have is 0.
  const kf_plugin& plugin() const { return plugin_; }
  const kf_memory& memory() const { return memory_; }
  const std::vector<RowTable>& rows() const { return rows_; }
  DeviceType device_type() const { return device_type_; }

 private:
  [[noreturn]] void fail(std::string_view what, std::string_view expected, std::string_view got) const {
    throw Error(
        ErrorCode::unavailable,
        fmt::format("plug-in {}: {}: expected {}, got {}; this is a mistake in the plug-in: kf/kf_c.h says "
                    "what its table holds",
                    path_, what, expected, got),
        {{"path", path_}});
  }

  // A copy of what the plug-in has of a struct, and 0 for the rest.
  template <class S>
  S sized(std::string_view what, const S& theirs) const {
    const auto size = theirs.struct_size;
    if (size < kFirstSize<S> || size > kMaxSize)
      fail(fmt::format("{}: struct_size", what),
           fmt::format("sizeof, from {} to {}", kFirstSize<S>, kMaxSize), std::to_string(size));
    const auto* bytes = reinterpret_cast<const unsigned char*>(&theirs);
    for (std::size_t i = sizeof(S); i < size; ++i)
      if (bytes[i] != 0)
        fail(fmt::format("{}: struct_size", what),
             fmt::format("{} or zeros beyond, since this kf ({}) knows no more", sizeof(S), KF_VERSION),
             fmt::format("{}, with byte {} set", size, i));
    S ours{};
    std::memcpy(&ours, &theirs, std::min(size, sizeof(S)));
    return ours;
  }

  void check_name() const {
    const std::string_view name = plugin_.name ? plugin_.name : "";
    const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
    if (name.empty() || !std::ranges::all_of(name, fits))
      fail("name", "lower-case letters, digits and _", fmt::format("'{}'", name));
  }

  DeviceType named_device_type() const {
    const std::string_view name = plugin_.device_type ? plugin_.device_type : "";
    for (const DeviceType t : kDeviceTypes)
      if (name == device_type_name(t)) return t;
    fail("device_type", "cpu, cuda, rocm, ascend, mlu or kunlun", fmt::format("'{}'", name));
  }

  void check_memory() {
    memory_ = sized("memory", *plugin_.memory);
    const kf_memory& m = memory_;
    const int given = !!m.allocate + !!m.free + !!m.copy + !!m.synchronize;
    if (given != 4) fail("memory", "allocate, free, copy and synchronize", fmt::format("{} of the 4", given));
    if (!m.allocate_host != !m.free_host)
      fail("memory", "allocate_host and free_host, or neither", "one of them");
  }

  void check_rows() {
    if (!plugin_.rows || plugin_.num_rows == 0) fail("rows", "at least one row", "none");
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < plugin_.num_rows; ++i) {
      const kf_row* const theirs = plugin_.rows[i];
      if (!theirs) fail(fmt::format("rows[{}]", i), "a row", "null");
      rows_.push_back({theirs, sized(fmt::format("rows[{}]", i), *theirs)});
      const kf_row& row = rows_.back().row;
      check_row(row);
      if (!names.insert(row.name).second) fail(row.name, "a name of its own", "that of another row");
    }
  }

  void check_row(const kf_row& row) const {
    const std::string prefix = fmt::format("{}::", plugin_.name);
    const std::string name = row.name ? row.name : "";
    if (!name.starts_with(prefix) || name.size() == prefix.size())
      fail("a row's name", prefix + "...", fmt::format("'{}'", name));
    const OpInfo* op = row.op ? find_op(row.op) : nullptr;
    if (!op) {
      std::vector<std::string_view> names;
      for (const OpInfo& o : all_ops()) names.push_back(o.name);
      fail(name + ": op", fmt::format("one of {}", fmt::join(names, ", ")),
           fmt::format("'{}'", row.op ? row.op : ""));
    }
    constexpr unsigned kFamilies = kReference | kVanilla | kFused | kLibrary | kCustom;
    if (row.families == 0 || (row.families & ~kFamilies))
      fail(name + ": families", "bits of KF_FAMILY_..., at least one", fmt::format("{:#x}", row.families));
    if (row.flags & ~unsigned{KF_ROW_GRAPH_SAFE | KF_ROW_BATCH_INVARIANT})
      fail(name + ": flags", "bits of KF_ROW_...", fmt::format("{:#x}", row.flags));
    if (!row.condition || !*row.condition)
      fail(name + ": condition", "when the row serves, in words", "nothing");
    if (!row.supports) fail(name + ": supports", "a function", "null");
    if (!row.run) fail(name + ": run", "a function", "null");
    if (!row.plan != !row.free_plan) fail(name, "plan and free_plan, or neither", "one of them");
    check_fields(row, name, *op);
  }

  // All of them are the op's; those that no call can do without are there, and those that change without another plan.
  void check_fields(const kf_row& row, const std::string& name, const OpInfo& op) const {
    if (!row.fields) fail(name + ": fields", "the names of operands and attributes, then null", "null");
    const AnyParams defaults(op.op);
    const Fields all(defaults);
    std::set<std::string_view> listed;
    for (const char* const* f = row.fields; *f; ++f) {
      listed.insert(*f);
      if (all.find(*f)) continue;
      std::vector<std::string_view> names;
      for (const Field& known : all) names.push_back(known.name);
      fail(name + ": fields", fmt::format("those of {}: {}", op.name, fmt::join(names, ", ")),
           fmt::format("'{}'", *f));
    }
    for (const Field& f : all)
      if ((f.required || f.changes) && !listed.contains(f.name))
        fail(name + ": fields", fmt::format("'{}', which every call of {} has, among them", f.name, op.name),
             "none");
  }

  const std::string path_;
  kf_plugin plugin_;
  kf_memory memory_{};
  std::vector<RowTable> rows_;
  DeviceType device_type_{};
};

// Rows.

// What calls with other fields than the row's are held against.
struct Row {
  const kf_row* theirs;
  kf_row row;
  Op op;
  AnyParams defaults;
  std::string name;

  explicit Row(const RowTable& t)
      : theirs(t.theirs), row(t.row), op(find_op(row.op)->op), defaults(op), name(row.name) {}

  bool lists(std::string_view field) const {
    for (const char* const* f = row.fields; *f; ++f)
      if (field == *f) return true;
    return false;
  }

  // Why the call has more than the row reads; empty: it has not.
  std::string beyond(const kf_call& call) const {
    const Field* f =
        set_beyond(call.fields, Fields(defaults), [&](const Field& field) { return lists(field.name); });
    if (f) return fmt::format("{}: this row takes calls without it", f->name);
    return {};
  }

  // What one of the row's functions reported of the call, with what it asked for held against what it lists.
  Result judge(const char* function, const kf_call& call, const Attempt& a) const {
    const std::string what = fmt::format("kernel {}: {}", name, function);
    if (!call.bad_name[0]) return result_of(what, a);
    return {
        KF_UNAVAILABLE,
        fmt::format("{} asked for '{}', which is not among the fields of that kind that the row lists; {}",
                    what, call.bad_name.data(), kTheirMistake)};
  }
};

kf_plan_context context_of(const PlanContext& ctx) {
  return {sizeof(kf_plan_context), ctx.caps.device.index, ctx.num_threads, ctx.packs != nullptr, 0};
}

Support supports(const Row& r, const void* params, const PlanContext& ctx) {
  const kf_call call(r.op, params, r.row.fields);
  if (std::string more = r.beyond(call); !more.empty()) return Support::no(std::move(more));
  const kf_plan_context context = context_of(ctx);
  const Attempt a =
      attempt([&](kf_reason* reason) { return r.row.supports(r.theirs, &call, &context, reason); });
  const Result result = r.judge("supports", call, a);
  if (result.status == KF_OK) return Support::yes();
  const bool is_no =
      result.status == KF_NOT_IMPLEMENTED && a.reason.text[0] != 0;  // its own words are enough
  return Support::no(is_no ? a.reason.text : result.reason);
}

Prepared prepare(const std::shared_ptr<const Row>& r, const void* params, const PlanContext& ctx) {
  Prepared p;
  if (!r->row.plan) return p;
  const kf_call call(r->op, params, r->row.fields);
  const kf_plan_context context = context_of(ctx);
  kf_planned planned{sizeof planned, nullptr, 0, 1, 1};
  const Attempt a =
      attempt([&](kf_reason* reason) { return r->row.plan(r->theirs, &call, &context, &planned, reason); });
  // Whatever came of it, what it made is freed.
  if (planned.plan)
    p.state = std::shared_ptr<void>(
        planned.plan, [r](void* plan) { r->row.free_plan(r->theirs, static_cast<kf_plan*>(plan)); });
  const Result result = r->judge("plan", call, a);
  if (result.status != KF_OK) throw Error(code_of(result.status), result.reason, {{"kernel", r->name}});
  p.workspace_bytes = planned.workspace_bytes;
  p.launches = planned.launches;
  p.graph_safe = planned.graph_safe != 0;
  return p;
}

void run(const Row& r, const void* params, const void* state, const RunContext& ctx) {
  const kf_call call(r.op, params, r.row.fields);
  const kf_run_context context{sizeof context, ctx.workspace, ctx.stream, call.device(), ctx.num_threads};
  const Attempt a = attempt([&](kf_reason* reason) {
    return r.row.run(r.theirs, &call, static_cast<const kf_plan*>(state), &context, reason);
  });
  if (a.status == KF_OK && !call.bad_name[0]) return;
  const Result result = r.judge("run", call, a);
  throw Error(code_of(result.status), result.reason, {{"kernel", r.name}});
}

Kernel kernel_of(const RowTable& table) {
  const auto r = std::make_shared<const Row>(table);
  const kf_row& row = r->row;
  Kernel k;
  k.name = row.name;
  k.op = r->op;
  k.families = row.families;
  k.condition = row.condition;
  k.graph_safe = (row.flags & KF_ROW_GRAPH_SAFE) != 0;
  k.batch_invariant = (row.flags & KF_ROW_BATCH_INVARIANT) != 0;
  k.supports = [r](const void* params, const PlanContext& ctx) { return supports(*r, params, ctx); };
  k.prepare = [r](const void* params, const PlanContext& ctx) { return prepare(r, params, ctx); };
  k.run = [r](const void* params, const void* state, const RunContext& ctx) { run(*r, params, state, ctx); };
  return k;
}

// The device.

DeviceCaps capabilities(const kf_plugin& plugin, DeviceType type, int index) {
  kf_capabilities c{};
  c.struct_size = sizeof c;
  must(fmt::format("backend {}: device {}", plugin.name, index),
       [&](kf_reason* reason) { return plugin.capabilities(plugin.context, index, &c, reason); });
  c.name[sizeof c.name - 1] = 0;
  c.isa[sizeof c.isa - 1] = 0;
  DeviceCaps caps;
  caps.device = {type, index};
  caps.name = c.name;
  caps.isa = c.isa;
  caps.num_threads = std::clamp(c.num_threads, 1, kMaxThreads);
  caps.l1_bytes = c.l1_bytes;
  caps.l2_bytes = c.l2_bytes;
  caps.l3_bytes = c.l3_bytes;
  caps.memory_bytes = c.memory_bytes;
  return caps;
}

// What allocate() and allocate_host() gave.
void* checked_memory(const std::string& what, void* memory) {
  if (memory && reinterpret_cast<std::uintptr_t>(memory) % 64 == 0) return memory;
  throw Error(ErrorCode::unavailable,
              fmt::format("{}: expected 64-byte aligned memory, got {}; {}", what, memory, kTheirMistake));
}

DeviceMemory memory_of(const kf_memory& m, const std::string& backend) {
  DeviceMemory d;
  if (!m.allocate) return d;
  const std::string prefix = fmt::format("backend {}: ", backend);
  d.allocate = [m, what = prefix + "allocate"](int index, std::size_t bytes, void* stream) {
    void* memory = nullptr;
    must(what,
         [&](kf_reason* reason) { return m.allocate(m.context, index, bytes, stream, &memory, reason); });
    return checked_memory(what, memory);
  };
  d.free = [m](int index, void* memory, void* stream) { m.free(m.context, index, memory, stream); };
  d.copy = [m, what = prefix + "copy"](int index, void* to, const void* from, std::size_t bytes,
                                       CopyDirection direction, void* stream) {
    must(what, [&](kf_reason* reason) {
      return m.copy(m.context, index, to, from, bytes, static_cast<std::int32_t>(direction), stream, reason);
    });
  };
  d.synchronize = [m, what = prefix + "synchronize"](int index, void* stream) {
    must(what, [&](kf_reason* reason) { return m.synchronize(m.context, index, stream, reason); });
  };
  if (!m.allocate_host) return d;
  d.allocate_host = [m, what = prefix + "allocate_host"](int index, std::size_t bytes) {
    void* memory = nullptr;
    must(what, [&](kf_reason* reason) { return m.allocate_host(m.context, index, bytes, &memory, reason); });
    return checked_memory(what, memory);
  };
  d.free_host = [m](void* memory) { m.free_host(m.context, memory); };
  return d;
}

// An enqueue of ours as C has it: what it throws waits until the plug-in has returned.
struct Enqueue {
  const std::function<void(void* stream)>& function;
  std::exception_ptr thrown;

  static kf_status give(void* self, void* stream) noexcept {
    auto& e = *static_cast<Enqueue*>(self);
    try {
      e.function(stream);
      return KF_OK;
    } catch (...) {
      e.thrown = std::current_exception();
      return KF_UNAVAILABLE;
    }
  }
};

double timed(const kf_plugin& plugin, int index, const std::function<void(void* stream)>& function) {
  Enqueue e{function, nullptr};
  double milliseconds = 0;
  const Attempt a = attempt([&](kf_reason* reason) {
    return plugin.time(plugin.context, index, Enqueue::give, &e, &milliseconds, reason);
  });
  if (e.thrown) std::rethrow_exception(e.thrown);
  const Result r = result_of(fmt::format("backend {}: time", plugin.name), a);
  if (r.status != KF_OK) throw Error(code_of(r.status), r.reason);
  return milliseconds;
}

static_assert(static_cast<int>(CopyDirection::to_device) == KF_COPY_TO_DEVICE &&
              static_cast<int>(CopyDirection::to_host) == KF_COPY_TO_HOST &&
              static_cast<int>(CopyDirection::on_device) == KF_COPY_ON_DEVICE);
static_assert(unsigned{kCustom} == unsigned{KF_FAMILY_CUSTOM} &&
              unsigned{kFused} == unsigned{KF_FAMILY_FUSED} &&
              unsigned{kLibrary} == unsigned{KF_FAMILY_LIBRARY} &&
              unsigned{kVanilla} == unsigned{KF_FAMILY_VANILLA} &&
              unsigned{kReference} == unsigned{KF_FAMILY_REFERENCE});

}  // namespace

Backend make_backend(const kf_plugin& table, const std::string& path) {
  const auto t = std::make_shared<const Table>(table, path);
  Backend b;
  b.name = t->plugin().name;
  b.device_type = t->device_type();
  b.available = [t] {
    const kf_plugin& plugin = t->plugin();
    const Attempt a = attempt([&](kf_reason* reason) { return plugin.available(plugin.context, reason); });
    const Result r = result_of(fmt::format("backend {}", plugin.name), a);
    if (r.status == KF_OK) return Support::yes();
    return Support::no(is_status(a.status) && a.reason.text[0] ? a.reason.text : r.reason);
  };
  b.capabilities = [t](int index) { return capabilities(t->plugin(), t->device_type(), index); };
  b.kernels = [t] {
    std::vector<Kernel> rows;
    for (const RowTable& row : t->rows()) rows.push_back(kernel_of(row));
    return rows;
  };
  b.memory = memory_of(t->memory(), b.name);
  if (t->plugin().time)
    b.time = [t](int index, const std::function<void(void* stream)>& enqueue) {
      return timed(t->plugin(), index, enqueue);
    };
  return b;
}

}  // namespace kf::plugin
