#include "jit/cuda_kernel.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "jit/compile.h"
#include "jit/values.h"
#include "kf/error.h"

namespace kf::jit {
namespace {

constexpr std::size_t kMaxParameters = 64;

// How a value becomes a parameter.
enum class Form : std::uint8_t { pointer, i8, i16, i32, i64, f32, f64 };

struct Parameter {
  ValueSource source;
  Form form;
};

struct Launch {
  std::shared_ptr<const LoadedFunction> function;  // null: an empty call
  std::vector<Parameter> parameters;
  std::array<unsigned, 3> grid{}, block{};
  unsigned shared_bytes = 0;
};

// What all plans of a row share.
struct Row {
  std::string name;
  Op op;
  CudaSource source;
  const Nvrtc& nvrtc;
  const Driver& driver;
  std::string folder;
  std::vector<ValueSource> args;
  std::vector<bool> named, strided;  // by field: args names it; args names its strides

  std::mutex mutex;
  // By device, architecture, dtype and shared memory: the runs of all layouts launch one function.
  std::map<std::tuple<int, std::string, DType, std::int64_t>,
           std::pair<std::shared_ptr<const LoadedFunction>, std::vector<std::string>>>
      loaded;
};

std::string quoted(const Row& row, std::size_t arg) {
  return fmt::format("args[{}] ({})", arg, row.source.args[arg]);
}

Form form_of(const Row& row, std::size_t arg, const std::string& type, Value::Kind kind) {
  const auto fail = [&](const char* expected) {
    throw_invalid(fmt::format("{}: parameter {} of {} is {}: expected {} for {}", row.name, arg,
                              row.source.entry, type, expected, quoted(row, arg)));
  };
  if (kind == Value::Kind::pointer) {
    if (type != "u64") fail("a pointer");
    return Form::pointer;
  }
  if (type == "f32") return Form::f32;
  if (type == "f64") return Form::f64;
  if (kind == Value::Kind::real) fail("float or double");
  const std::string bits = type.empty() ? "" : type.substr(1);
  if (bits == "64") return Form::i64;
  if (bits == "32") return Form::i32;
  if (bits == "16") return Form::i16;
  if (bits != "8") fail("a number");
  return Form::i8;
}

// The dtype of a call's floating-point operands.
DType dtype_of(const Fields& fields) {
  for (const Field& f : fields)
    if (f.is_given() && dtype_info(f.view->dtype).is_float) return f.view->dtype;
  return DType::f32;
}

Support supports(const Row& row, const void* params) {
  if (!row.nvrtc.problem().empty())
    return Support::no("NVRTC: " + row.nvrtc.problem() + " (install nvidia-cuda-nvrtc)");
  if (!row.driver.problem().empty()) return Support::no("the driver: " + row.driver.problem());
  const AnyParams defaults(row.op);
  const Fields call(row.op, params);
  const auto named = [&](const Field& f) { return row.named[call.index_of(f)]; };
  if (const Field* f = set_beyond(call, Fields(defaults), named))
    return Support::no(f->is_tensor()
                           ? fmt::format("{} is given, which no entry of args names", f->name)
                           : fmt::format("{} is not at its default: no entry of args names it", f->name));
  const DType dtype = dtype_of(call);
  for (const Field& f : call) {
    if (!f.is_given()) continue;
    const TensorView t =
        std::ranges::find(row.source.transposed, f.name) != row.source.transposed.end() && f.view->rank == 2
            ? f.view->transpose(0, 1)
            : *f.view;
    if (!row.strided[call.index_of(f)] && !t.is_contiguous())
      return Support::no(fmt::format("{} {}: this kernel takes contiguous operands{}", f.name,
                                     to_string(*f.view),
                                     row.source.transposed.empty() ? "" : ", weights as [in, out]"));
    if (!dtype_info(t.dtype).is_float) continue;
    if (std::ranges::find(row.source.dtypes, t.dtype) == row.source.dtypes.end() || t.dtype != dtype) {
      std::vector<std::string> names;
      for (const DType d : row.source.dtypes) names.emplace_back(dtype_name(d));
      return Support::no(fmt::format("{} {}: this kernel takes one dtype throughout, of {}", f.name,
                                     dtype_name(t.dtype), fmt::join(names, ", ")));
    }
  }
  return Support::yes();
}

void check_shape(const Row& row, const LaunchShape& s) {
  // Of every compute capability from 3.0 on (CUDA C++ Programming Guide, technical specifications).
  constexpr std::array<std::int64_t, 3> kMaxGrid{2147483647, 65535, 65535}, kMaxBlock{1024, 1024, 64};
  constexpr std::int64_t kMaxThreads = 1024, kMaxShared = 227 << 10;
  for (std::size_t i = 0; i < 3; ++i) {
    if (s.grid[i] < 1 || s.grid[i] > kMaxGrid[i])
      throw_invalid(fmt::format("{}: shape: grid: expected 1 to {} blocks in dimension {}, got {}", row.name,
                                kMaxGrid[i], i, s.grid[i]));
    if (s.block[i] < 1 || s.block[i] > kMaxBlock[i])
      throw_invalid(fmt::format("{}: shape: block: expected 1 to {} threads in dimension {}, got {}",
                                row.name, kMaxBlock[i], i, s.block[i]));
  }
  if (const std::int64_t threads = s.block[0] * s.block[1] * s.block[2]; threads > kMaxThreads)
    throw_invalid(
        fmt::format("{}: shape: block: expected at most {} threads, got {}", row.name, kMaxThreads, threads));
  if (s.shared_bytes < 0 || s.shared_bytes > kMaxShared)
    throw_invalid(fmt::format("{}: shape: shared_bytes: expected 0 to {}, got {}", row.name, kMaxShared,
                              s.shared_bytes));
}

bool writes_nothing(const Fields& fields) {
  return std::ranges::none_of(
      fields, [](const Field& f) { return f.is_given() && f.role != Role::in && f.view->numel() > 0; });
}

std::shared_ptr<Launch> prepare(Row& row, const void* params, const PlanContext& ctx) {
  auto launch = std::make_shared<Launch>();
  const Fields fields(row.op, params);
  if (writes_nothing(fields)) return launch;
  const LaunchShape shape = row.source.shape(CallSizes(row.op, params, row.source.transposed));
  check_shape(row, shape);
  std::ranges::transform(shape.grid, launch->grid.begin(),
                         [](std::int64_t n) { return static_cast<unsigned>(n); });
  std::ranges::transform(shape.block, launch->block.begin(),
                         [](std::int64_t n) { return static_cast<unsigned>(n); });
  launch->shared_bytes = static_cast<unsigned>(shape.shared_bytes);

  const std::lock_guard lock(row.mutex);
  const DType dtype = dtype_of(fields);
  auto& [function, types] = row.loaded[{ctx.caps.device.index, ctx.caps.isa, dtype, shape.shared_bytes}];
  if (function == nullptr) {
    CompiledCuda c =
        compile(row.name, row.source, own_architecture(ctx.caps.isa), dtype, row.nvrtc, row.folder);
    if (c.parameters.size() != row.args.size())
      throw_invalid(fmt::format("{}: {} has {} parameters: expected as many entries of args, got {}",
                                row.name, row.source.entry, c.parameters.size(), row.args.size()));
    for (std::size_t i = 0; i < row.args.size(); ++i)
      form_of(row, i, c.parameters[i], value_of(fields, row.args[i]).kind);
    function = std::make_shared<const LoadedFunction>(row.driver, ctx.caps.device.index, c.image, c.symbol,
                                                      static_cast<std::size_t>(shape.shared_bytes));
    types = std::move(c.parameters);
  }
  launch->function = function;
  for (std::size_t i = 0; i < row.args.size(); ++i)
    launch->parameters.push_back(
        {row.args[i], form_of(row, i, types[i], value_of(fields, row.args[i]).kind)});
  return launch;
}

void run(Op op, const void* params, const Launch& launch, void* stream) {
  if (launch.function == nullptr) return;
  union Slot {
    const void* pointer;
    std::int64_t i64;
    std::int32_t i32;
    std::int16_t i16;
    std::int8_t i8;
    float f32;
    double f64;
  };
  std::array<Slot, kMaxParameters> values;
  std::array<void*, kMaxParameters> places;
  const Fields fields(op, params);
  for (std::size_t i = 0; i < launch.parameters.size(); ++i) {
    const Value v = value_of(fields, launch.parameters[i].source);
    const double real = v.kind == Value::Kind::real ? v.real : static_cast<double>(v.integer);
    Slot& s = values[i];
    switch (launch.parameters[i].form) {
      case Form::pointer:
        s.pointer = v.pointer;
        break;
      case Form::i8:
        s.i8 = static_cast<std::int8_t>(v.integer);
        break;
      case Form::i16:
        s.i16 = static_cast<std::int16_t>(v.integer);
        break;
      case Form::i32:
        s.i32 = static_cast<std::int32_t>(v.integer);
        break;
      case Form::i64:
        s.i64 = v.integer;
        break;
      case Form::f32:
        s.f32 = static_cast<float>(real);
        break;
      case Form::f64:
        s.f64 = real;
        break;
    }
    places[i] = &s;
  }
  launch.function->launch(launch.grid, launch.block, launch.shared_bytes, stream, places.data());
}

// The fields that args (and settled) name, and those whose strides they do.
void note_names(Row& row) {
  const AnyParams defaults(row.op);
  const Fields fields(defaults);
  row.named.assign(fields.size(), false);
  row.strided = row.named;
  for (const std::string& name : row.source.args) {
    const ValueSource s = value_source(row.op, name, row.source.transposed);
    row.args.push_back(s);
    if (s.kind == ValueSource::Kind::pointer || s.kind == ValueSource::Kind::attribute)
      row.named[s.field] = true;
    if (s.kind == ValueSource::Kind::stride) row.strided[s.field] = true;
  }
  for (const std::vector<std::string>* list : {&row.source.settled, &row.source.transposed})
    for (const std::string& name : *list) {
      const Field* f = fields.find(name);
      if (f == nullptr || f->is_tensor() == (list == &row.source.settled))
        throw_invalid(fmt::format("{}: expected {} of {}, got {}", row.name,
                                  list == &row.source.settled ? "an attribute" : "a weight", op_name(row.op),
                                  name));
      if (list == &row.source.settled) row.named[fields.index_of(*f)] = true;
    }
}

}  // namespace

Kernel cuda_kernel(std::string name, Op op, CudaSource source, CheckOptions check, const Nvrtc& nvrtc,
                   const Driver& driver, std::string folder) {
  const std::shared_ptr<Row> row(
      new Row{name, op, std::move(source), nvrtc, driver, std::move(folder), {}, {}, {}, {}, {}});
  if (row->source.args.size() > kMaxParameters)
    throw_invalid(fmt::format("{}: args: expected at most {} entries, got {}", name, kMaxParameters,
                              row->source.args.size()));
  if (!row->source.shape) throw_invalid(fmt::format("{}: shape: expected a function, got none", name));
  for (const DType d : row->source.dtypes)
    if (!is_activation_dtype(d))
      throw_invalid(fmt::format("{}: dtypes: expected f32, f16 or bf16, got {}", name, dtype_name(d)));
  note_names(*row);
  Kernel k;
  k.name = std::move(name);
  k.op = op;
  k.families = kCustom;
  k.condition = "CUDA source, contiguous operands; checked before use";
  k.device_type = DeviceType::cuda;
  k.graph_safe = row->source.graph_safe;
  k.supports = [row](const void* params, const PlanContext&) { return supports(*row, params); };
  k.prepare = [row](const void* params, const PlanContext& ctx) {
    return Prepared{.state = prepare(*row, params, ctx), .graph_safe = row->source.graph_safe};
  };
  k.run = [op](const void* params, const void* state, const RunContext& ctx) {
    run(op, params, *static_cast<const Launch*>(state), ctx.stream);
  };
  return checked_kernel(std::move(k), std::move(check));
}

}  // namespace kf::jit

namespace kf {

Kernel cuda_kernel(std::string name, Op op, CudaSource source, CheckOptions check) {
  return jit::cuda_kernel(std::move(name), op, std::move(source), std::move(check), jit::nvrtc(),
                          jit::driver(), jit::cuda_cache_folder());
}

}  // namespace kf
