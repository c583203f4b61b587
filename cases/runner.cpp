#include "runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "backends/cpu/simd/peak.h"
#include "core/hash.h"
#include "core/quantizer.h"
#include "kf/error.h"

namespace kf::cases {
namespace {

constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xA5;

// Where the outputs of a call lie.
struct Form {
  bool padded = false;  // their rows apart from one another; else as the case has them
  Alias alias{};        // this output in the memory of this input

  std::string prefix() const {
    if (padded) return "padded outputs: ";
    return alias.output ? fmt::format("{} in the memory of {}: ", alias.output, alias.input) : "";
  }
};

// A call's operands where a dispatcher runs it: outputs each between guard bands, inputs as they are or copied to the
// device. What is compared is on the host.
struct Operands {
  AnyParams params;
  std::vector<Slot> slots;  // of params
  std::vector<Tensor> storage;
  std::vector<std::shared_ptr<void>> device_storage;
  struct Output {
    std::string name;
    TensorView view;       // on the host
    unsigned char* begin;  // of the guarded memory on the host
    std::size_t payload;
    void* device_begin = nullptr;            // of its copy on the device
    std::vector<unsigned char> before = {};  // the payload, where elements leave bytes of it alone
  };
  std::vector<Output> outputs;
  std::string overwritten = {};  // the input whose memory is an output's
};

std::size_t span_bytes(const TensorView& t) {
  const DTypeInfo& info = dtype_info(t.dtype);
  std::int64_t last = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return 0;
    last += (t.shape[i] - 1) * t.strides[i];
  }
  return static_cast<std::size_t>((last + info.block_elems) / info.block_elems * info.block_bytes);
}

void* copy_to_device(Operands& o, const Dispatcher& d, const void* from, std::size_t bytes) {
  o.device_storage.push_back(d.allocate(bytes));
  void* memory = o.device_storage.back().get();
  d.copy(memory, from, bytes, CopyDirection::to_device);
  return memory;
}

// Rows are a few elements apart, and the leading dimensions do not merge into one.
TensorView padded(TensorView t) {
  constexpr std::int64_t kPad = 3;
  for (int i = t.rank - 2; i >= 0; --i)
    t.strides[i] = i == t.rank - 2 ? t.shape[i + 1] + kPad : (t.shape[i + 1] + 1) * t.strides[i + 1];
  if (t.rank >= 2) t.strides[t.rank - 1] = 1;
  return t;
}

const Slot& slot_named(const std::vector<Slot>& slots, std::string_view name) {
  return *std::find_if(slots.begin(), slots.end(), [&](const Slot& s) { return s.name == name; });
}

// The forms in which an op takes a call, the case's own first.
std::vector<Form> forms_of(const Instance& instance) {
  std::vector<Form> forms(1);
  AnyParams params = instance.params;
  const OpInfo& info = op_info(params.op());
  const std::vector<Slot> slots = slots_of(params.op(), params.data());
  bool has_rows = false;
  for (const Slot& s : slots) {
    if (s.role != Role::out || s.tensor->rank < 2 || s.tensor->numel() == 0) continue;
    *s.tensor = padded(*s.tensor);
    has_rows = true;
  }
  if (has_rows) try {
      info.validate(params.data());
      forms.push_back({.padded = true});
    } catch (const Error&) {  // this op's outputs may not lie so
    }
  params = instance.params;
  const std::vector<Slot> given = slots_of(params.op(), params.data());
  for (const Alias& a : aliases_of(params.op())) {
    const TensorView &out = *slot_named(given, a.output).tensor, &in = *slot_named(given, a.input).tensor;
    if (!out.present() || !in.present() || out.dtype != in.dtype || !out.same_shape(in) || in.numel() == 0)
      continue;
    bool folded = false;  // a broadcast input is no place for an output
    for (int i = 0; i < in.rank; ++i) folded |= in.shape[i] > 1 && in.strides[i] == 0;
    if (!folded) forms.push_back({.alias = a});
  }
  return forms;
}

// Outputs get guarded memory, inout slots with what they had, so that every kernel starts from the same.
Operands operands_for(const Dispatcher& d, const Instance& instance, const Form& form = {}) {
  Operands o;
  o.params = instance.params;
  o.slots = slots_of(o.params.op(), o.params.data());
  AnyParams given = instance.params;
  const std::vector<Slot> given_slots = slots_of(given.op(), given.data());
  for (Slot& s : o.slots) {
    if (!s.tensor->present()) continue;
    if (s.role == Role::out && form.padded) *s.tensor = padded(*s.tensor);
    const bool aliased = form.alias.output && s.name == std::string_view(form.alias.output);
    if (aliased) *s.tensor = *slot_named(given_slots, form.alias.input).tensor;
    const std::size_t payload = span_bytes(*s.tensor);
    if (s.role == Role::in) {
      if (!d.on_host()) s.tensor->data = copy_to_device(o, d, s.tensor->data, payload);
    } else {
      const std::size_t bytes = payload + 2 * kGuardBytes;
      o.storage.emplace_back(DType::u8,
                             std::initializer_list<std::int64_t>{static_cast<std::int64_t>(bytes)});
      unsigned char* begin = o.storage.back().as<unsigned char>();
      std::memset(begin, kGuard, bytes);
      if ((s.role == Role::inout || aliased) && payload)
        std::memcpy(begin + kGuardBytes, s.tensor->data, payload);
      s.tensor->data = begin + kGuardBytes;
      o.outputs.push_back({s.name, *s.tensor, begin, payload});
      if (s.tensor->nbytes() < payload)
        o.outputs.back().before.assign(begin + kGuardBytes, begin + kGuardBytes + payload);
      if (!d.on_host()) {
        o.outputs.back().device_begin = copy_to_device(o, d, begin, bytes);
        s.tensor->data = static_cast<unsigned char*>(o.outputs.back().device_begin) + kGuardBytes;
      }
    }
    s.tensor->device = d.caps().device;
  }
  if (form.alias.output) {
    slot_named(o.slots, form.alias.input).tensor->data = slot_named(o.slots, form.alias.output).tensor->data;
    o.overwritten = form.alias.input;
  }
  d.synchronize();
  return o;
}

// What the device wrote, guards included.
void bring_back(const Dispatcher& d, const Operands& o) {
  if (d.on_host()) return;
  for (const auto& out : o.outputs)
    d.copy(out.begin, out.device_begin, out.payload + 2 * kGuardBytes, CopyDirection::to_host);
  d.synchronize();
}

std::string broken_guard(const Operands& o) {
  for (const auto& out : o.outputs) {
    for (std::size_t i = 0; i < kGuardBytes; ++i)
      if (out.begin[i] != kGuard || out.begin[kGuardBytes + out.payload + i] != kGuard)
        return fmt::format("{}: wrote outside its memory", out.name);
    if (out.before.empty()) continue;
    std::vector<bool> is_element(out.payload);
    const std::size_t bytes = static_cast<std::size_t>(dtype_info(out.view.dtype).block_bytes);
    for (std::int64_t i = 0, n = out.view.numel(); i < n; ++i) {
      const auto* at = static_cast<const unsigned char*>(out.view.at(element_offset(out.view, i)));
      std::fill_n(is_element.begin() + (at - out.begin - static_cast<std::ptrdiff_t>(kGuardBytes)), bytes,
                  true);
    }
    for (std::size_t i = 0; i < out.payload; ++i)
      if (!is_element[i] && out.begin[kGuardBytes + i] != out.before[i])
        return fmt::format("{}: wrote between its rows", out.name);
  }
  return {};
}

// How many codes of int4, i8 or fp8 two values are apart, as Tolerance counts them.
double codes_apart(DType dtype, double a, double b, double code_floor) {
  if (dtype == DType::int4 || dtype == DType::i8) return std::abs(a - b);
  const int mantissa_bits = dtype == DType::fp8_e4m3 ? 3 : 2,
            least_exponent = dtype == DType::fp8_e4m3 ? -6 : -14;
  const double largest = std::max(std::abs(a), std::abs(b));
  const int exponent = std::max(largest > 0 ? std::ilogb(largest) : least_exponent, least_exponent);
  return std::abs(a - b) /
         std::max(std::ldexp(1.0, exponent - mantissa_bits), code_floor * code_ends(dtype).highest);
}

Comparison compare(const Case& c, const Operands& got, const Operands& ref, bool on_host) {
  const double atol = c.tolerance.atol + (on_host ? 0 : c.tolerance.device_atol);
  Comparison r;
  double largest = 0;
  for (std::size_t k = 0; k < got.outputs.size(); ++k) {
    const TensorView &g = got.outputs[k].view, &f = ref.outputs[k].view;
    const bool codes = needs_scales(g.dtype), exact = !codes && !dtype_info(g.dtype).is_float;
    for (std::int64_t i = 0, n = g.numel(); i < n; ++i) {
      const double a = element(g, i), b = element(f, i);
      bool ok;
      double error = 0;
      if (std::isnan(b) || std::isnan(a)) {
        ok = std::isnan(a) && std::isnan(b);
      } else if (std::isinf(b) || std::isinf(a)) {
        ok = a == b;
      } else if (codes) {
        error = codes_apart(g.dtype, a, b, c.tolerance.code_floor);
        ok = error <= c.tolerance.codes;
      } else {
        error = std::abs(a - b);
        ok = error <= (exact ? 0.0 : atol + c.tolerance.rtol * std::abs(b));
        largest = std::max(largest, std::abs(b));
      }
      r.max_error = std::max(r.max_error, error);
      if (!ok && r.ok) {
        r.ok = false;
        const double allowed = exact   ? 0.0
                               : codes ? c.tolerance.codes
                                       : atol + c.tolerance.rtol * std::abs(b);
        r.detail = fmt::format("{}[{}]: expected {:.9g}, got {:.9g}, difference {:.3g}{}, allowed {:.3g}",
                               got.outputs[k].name, i, b, a, codes ? error : std::abs(a - b),
                               codes ? " codes" : "", allowed);
      }
    }
  }
  if (std::string g = broken_guard(got); !g.empty()) {
    r.ok = false;
    r.detail = g;
  }
  r.relative_error = largest > 0 ? r.max_error / largest : r.max_error;
  return r;
}

double run_once_ms(const Dispatcher& d, const Plan& plan, const void* params, void* workspace) {
  const RunContext ctx{workspace, d.num_threads(), nullptr};
  const auto start = std::chrono::steady_clock::now();
  plan.run(params, ctx);
  d.synchronize();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// Checksums of what the input slots address, in their order: a kernel must leave it alone. 0 where it is an output's.
std::vector<std::uint64_t> input_hashes(const Dispatcher& d, const Operands& o) {
  std::vector<std::uint64_t> hashes;
  std::vector<unsigned char> copy;
  for (const Slot& s : o.slots) {
    if (!s.tensor->present() || s.role != Role::in) continue;
    std::uint64_t& h = hashes.emplace_back(0);
    if (s.name == o.overwritten) continue;
    const std::size_t n = span_bytes(*s.tensor);
    const auto* p = s.tensor->as<const unsigned char>();
    if (!d.on_host()) {
      copy.resize(n);
      d.copy(copy.data(), s.tensor->data, n, CopyDirection::to_host);
      d.synchronize();
      p = copy.data();
    }
    h = checksum(p, n);
  }
  return hashes;
}

// The kernel on operands of one form, against the reference.
Comparison check_form(const Case& c, const Kernel& k, Dispatcher& dispatcher, PackCache* packs,
                      const Operands& got, const Operands& ref, const std::vector<std::uint64_t>& inputs) {
  const Selection only{.families = 0, .allow_fallback = false, .kernel = k.name};
  const auto plan = dispatcher.plan(c.op, got.params.data(), only, packs);
  // As the dispatcher has it: null where a plan asks for nothing.
  std::shared_ptr<void> workspace;
  if (const std::size_t bytes = plan->workspace_bytes(); bytes != 0) workspace = dispatcher.allocate(bytes);
  dispatcher.execute(*plan, got.params.data(), workspace.get());
  bring_back(dispatcher, got);
  Comparison result = compare(c, got, ref, dispatcher.on_host());
  const std::vector<std::uint64_t> after = input_hashes(dispatcher, got);
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (after[i] == 0 || after[i] == inputs[i]) continue;
    result.ok = false;
    result.detail = "changed an input";
  }
  return result;
}

}  // namespace

Instance instantiate(const Case& c) {
  Maker maker(c.name);
  Instance instance{c.make(maker), {}};
  const OpInfo& info = op_info(c.op);
  std::set<std::string> given;
  for (const Slot& s : slots_of(c.op, instance.params.data()))
    if (s.tensor->present()) given.insert(s.name);
  info.infer(instance.params.data());
  for (const Slot& s : slots_of(c.op, instance.params.data())) {
    if (s.role != Role::out || given.contains(s.name)) continue;
    if (s.optional && std::find(c.want.begin(), c.want.end(), s.name) == c.want.end()) {
      *s.tensor = TensorView{};
      continue;
    }
    maker.storage().emplace_back(s.tensor->dtype,
                                 std::span(s.tensor->shape.data(), static_cast<std::size_t>(s.tensor->rank)));
    *s.tensor = maker.storage().back();
  }
  instance.storage = std::move(maker.storage());
  return instance;
}

std::vector<KernelCheck> check_case(const Case& c, Dispatcher& dispatcher, Dispatcher& reference) {
  const Instance instance = instantiate(c);
  const OpInfo& info = op_info(c.op);
  info.validate(instance.params.data());
  info.validate_data(instance.params.data());

  const Operands ref = operands_for(reference, instance);
  const std::vector<std::uint64_t> inputs = input_hashes(reference, ref);
  const std::vector<Form> forms = forms_of(instance);
  // Once a kernel takes the call: the reference takes long.
  bool has_reference = false;
  const auto run_reference = [&] {
    if (std::exchange(has_reference, true)) return;
    reference.run(c.op, ref.params.data(), {.families = kReference, .allow_fallback = false, .kernel = {}});
    bring_back(reference, ref);
  };

  std::vector<KernelCheck> checks;
  for (const Kernel* k : dispatcher.kernels(c.op)) {
    if (k->families == kReference && &dispatcher.backend() == &reference.backend()) continue;
    // Once with weights as they come, once as constants that may be packed.
    for (const bool packed : {false, true}) {
      PackCache packs;
      const PlanContext ctx{dispatcher.caps(), dispatcher, dispatcher.num_threads(),
                            packed ? &packs : nullptr};
      KernelCheck check{k->name + (packed ? "+packed" : ""), family_names(k->families), false, {}, {}};
      for (const Form& form : forms) {
        const Operands got = operands_for(dispatcher, instance, form);
        const Support s = k->supports(got.params.data(), ctx);
        if (&form == &forms.front()) {
          check.supported = static_cast<bool>(s);
          check.reason = s.reason();
          if (!s) break;
        } else if (!s) {
          continue;
        }
        run_reference();
        const Comparison r = [&] {
          try {
            return check_form(c, *k, dispatcher, packed ? &packs : nullptr, got, ref, inputs);
          } catch (const std::exception& e) {
            return Comparison{.ok = false, .detail = fmt::format("it failed: {}", e.what())};
          }
        }();
        check.result.max_error = std::max(check.result.max_error, r.max_error);
        check.result.relative_error = std::max(check.result.relative_error, r.relative_error);
        if (check.result.ok && !r.ok) check.result.detail = form.prefix() + r.detail;
        check.result.ok &= r.ok;
      }
      checks.push_back(std::move(check));
    }
  }
  return checks;
}

Timing time_case(const Case& c, Dispatcher& dispatcher, const Selection& baseline, const Selection& optimized,
                 double seconds) {
  const Instance instance = instantiate(c);
  const Operands a = operands_for(dispatcher, instance), b = operands_for(dispatcher, instance);
  PackCache packs;  // weights are constant in an engine: both sides may pack them
  const auto plan_a = dispatcher.plan(c.op, a.params.data(), baseline, &packs);
  const auto plan_b = dispatcher.plan(c.op, b.params.data(), optimized, &packs);
  const auto space_a = dispatcher.allocate(plan_a->workspace_bytes());
  const auto space_b = dispatcher.allocate(plan_b->workspace_bytes());
  std::vector<double> times_a, times_b;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0;; ++i) {
    const double ms_a = run_once_ms(dispatcher, *plan_a, a.params.data(), space_a.get());
    const double ms_b = run_once_ms(dispatcher, *plan_b, b.params.data(), space_b.get());
    if (i == 0) continue;  // warm-up
    times_a.push_back(ms_a);
    times_b.push_back(ms_b);
    const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (elapsed > seconds && i >= 3) break;
  }
  bring_back(dispatcher, a);
  bring_back(dispatcher, b);
  Timing t;
  t.baseline = plan_a->kernel().name;
  t.optimized = plan_b->kernel().name;
  t.iterations = static_cast<int>(times_a.size());
  t.baseline_ms = median(times_a);
  t.optimized_ms = median(times_b);
  t.baseline_bytes = static_cast<double>(plan_a->workspace_bytes());
  t.optimized_bytes = static_cast<double>(plan_b->workspace_bytes());
  t.cost = plan_a->cost();
  t.check = compare(c, b, a, dispatcher.on_host());
  return t;
}

DeviceTiming time_on_device(const Case& c, Dispatcher& dispatcher, const Selection& selection,
                            Dispatcher& reference) {
  const Backend& backend = dispatcher.backend();
  if (!backend.time)
    throw Error(ErrorCode::not_implemented, fmt::format("backend {} has no clock of its own", backend.name));
  const Instance instance = instantiate(c);
  DeviceTiming t;
  // Weights are constant, also where results are checked: some rows take no others.
  PackCache packs;
  const auto plan_of = [&](const Operands& o) {
    return dispatcher.plan(c.op, o.params.data(), selection, &packs);
  };
  {
    const Operands got = operands_for(dispatcher, instance), ref = operands_for(reference, instance);
    const auto plan = plan_of(got);
    const auto workspace = dispatcher.allocate(plan->workspace_bytes());
    plan->run(got.params.data(), {workspace.get(), dispatcher.num_threads()});
    bring_back(dispatcher, got);
    reference.run(c.op, ref.params.data());
    t.check = compare(c, got, ref, dispatcher.on_host());
  }
  std::vector<Operands> copies(1);
  copies[0] = operands_for(dispatcher, instance);
  const auto plan = plan_of(copies[0]);
  t.kernel = plan->kernel().name;
  t.cost = plan->cost();
  constexpr double kMaxCopies = 64;
  const double wanted = 4.0 * static_cast<double>(dispatcher.caps().l2_bytes) / std::max(1.0, t.cost.bytes);
  while (static_cast<double>(copies.size()) < std::min(kMaxCopies, wanted))
    copies.push_back(operands_for(dispatcher, instance));
  // One a copy: what is packed of its weights is read from memory of its own, too.
  std::vector<std::shared_ptr<const Plan>> plans{plan};
  for (std::size_t i = 1; i < copies.size(); ++i) plans.push_back(plan_of(copies[i]));
  const auto workspace = dispatcher.allocate(plan->workspace_bytes());
  const int device = dispatcher.caps().device.index;
  std::size_t turn = 0;
  t.ms = backend.time(device, [&](void* stream) {
    const std::size_t at = turn++ % copies.size();
    plans[at]->run(copies[at].params.data(), {workspace.get(), dispatcher.num_threads(), stream});
  });
  const std::size_t half = std::max<std::size_t>(1, static_cast<std::size_t>(t.cost.bytes / 2));
  std::vector<std::shared_ptr<void>> buffers;
  for (std::size_t i = 0; i < 2 * copies.size(); ++i) buffers.push_back(dispatcher.allocate(half));
  turn = 0;
  t.copy_ms = backend.time(device, [&](void* stream) {
    const std::size_t at = 2 * (turn++ % copies.size());
    backend.memory.copy(device, buffers[at].get(), buffers[at + 1].get(), half, CopyDirection::on_device,
                        stream);
  });
  return t;
}

// Floats of a buffer that is larger than the caches of most machines, and no larger: a virtual machine may report its
// host's whole cache.
static std::size_t large_buffer(const Dispatcher& dispatcher) {
  return std::clamp<std::size_t>(4 * dispatcher.caps().l3_bytes, 128u << 20, 512u << 20) / sizeof(float);
}

// Median milliseconds of `round`, which first runs once unmeasured.
template <class F>
static double median_ms(const F& round) {
  std::vector<double> ms;
  for (int i = 0; i < 6; ++i) {
    const auto start = std::chrono::steady_clock::now();
    round();
    if (i > 0)
      ms.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return median(ms);
}

// Calls body(begin, end) for each thread's part of [0, n).
template <class F>
static void for_each_part(std::size_t n, int threads, const F& body) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t)
    body(n * static_cast<std::size_t>(t) / static_cast<std::size_t>(threads),
         n * (static_cast<std::size_t>(t) + 1) / static_cast<std::size_t>(threads));
}

double copy_bandwidth(Dispatcher& dispatcher) {
  const std::size_t n = large_buffer(dispatcher);
  const auto from = dispatcher.allocate(n * sizeof(float)), to = dispatcher.allocate(n * sizeof(float));
  auto* src = static_cast<float*>(from.get());
  auto* dst = static_cast<float*>(to.get());
  const int threads = dispatcher.num_threads();
  if (dispatcher.on_host())
    for_each_part(n, threads, [&](std::size_t lo, std::size_t hi) {
      std::memset(src + lo, 1, (hi - lo) * sizeof(float));
    });
  const double ms = median_ms([&] {
    if (dispatcher.on_host()) {
      for_each_part(n, threads, [&](std::size_t lo, std::size_t hi) {
        std::memcpy(dst + lo, src + lo, (hi - lo) * sizeof(float));
      });
    } else {
      dispatcher.copy(dst, src, n * sizeof(float), CopyDirection::on_device);
      dispatcher.synchronize();
    }
  });
  return 2.0 * static_cast<double>(n) * sizeof(float) / (ms * 1e6);
}

// The sum of `n` words, read as kStreams streams: of integers, since additions of floats would wait for each other.
template <int kStreams>
static std::uint64_t sum_of_words(const std::uint64_t* from, std::size_t n) {
  constexpr std::size_t kLine = 64 / sizeof(std::uint64_t);
  const std::size_t part = n / (kStreams * kLine) * kLine;
  std::uint64_t sums[kLine] = {};
  for (std::size_t i = 0; i < part; i += kLine)
    for (int s = 0; s < kStreams; ++s)
      for (std::size_t j = 0; j < kLine; ++j) sums[j] += from[static_cast<std::size_t>(s) * part + i + j];
  return std::accumulate(from + kStreams * part, from + n,
                         std::accumulate(sums, sums + kLine, std::uint64_t{0}));
}

double read_bandwidth(Dispatcher& dispatcher, std::span<const TensorView> tensors) {
  if (!dispatcher.on_host())
    throw Error(ErrorCode::not_implemented, "read bandwidth: measured on the CPU only");
  struct Words {
    const std::uint64_t* data;
    std::size_t count;
  };
  std::vector<Words> all;
  std::size_t total = 0;
  for (const TensorView& t : tensors) {
    if (!t.is_contiguous())
      throw_invalid(fmt::format("read bandwidth: expected contiguous tensors, got {}", to_string(t)));
    // Whole words: a file's tensors may begin between them.
    void* first = t.data;
    std::size_t bytes = t.nbytes();
    if (std::align(alignof(std::uint64_t), sizeof(std::uint64_t), first, bytes) == nullptr) continue;
    all.push_back({static_cast<const std::uint64_t*>(first), bytes / sizeof(std::uint64_t)});
    total += all.back().count;
  }
  if (total == 0) throw_invalid("read bandwidth: expected tensors of 8 bytes and more, got none");
  std::atomic<int> nonzero = 0;
  const auto rate = [&](std::uint64_t (*sum)(const std::uint64_t*, std::size_t)) {
    const double ms = median_ms([&] {
      for_each_part(total, dispatcher.num_threads(), [&](std::size_t lo, std::size_t hi) {
        std::uint64_t found = 0;
        std::size_t first = 0;  // of this tensor's words, among all
        for (const Words& w : all) {
          const std::size_t begin = std::clamp(lo, first, first + w.count),
                            end = std::clamp(hi, first, first + w.count);
          found += sum(w.data + (begin - first), end - begin);
          first += w.count;
        }
        if (found != 0) nonzero.fetch_add(1);  // so that the sums are needed
      });
    });
    return static_cast<double>(total) * sizeof(std::uint64_t) / (ms * 1e6);
  };
  return std::max(rate(sum_of_words<1>), rate(sum_of_words<4>));
}

double multiply_add_peak(Dispatcher& dispatcher) {
  if (!dispatcher.on_host())
    throw Error(ErrorCode::not_implemented, "multiply-add peak: measured on the CPU only");
  constexpr std::int64_t kSteps = 2'000'000;  // some milliseconds
  constexpr int kTrials = 20;
  const int threads = dispatcher.num_threads();
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    double flops = 0;
    const auto start = std::chrono::steady_clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : flops)
    {
      float sink = 0;
      flops += cpu::multiply_adds(kSteps, &sink);
      if (sink < 0) flops = 0;  // never; so that the sums are needed
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, flops / seconds.count() / 1e9);
  }
  return best;
}

}  // namespace kf::cases
