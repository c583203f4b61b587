#include "jit/compile.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kf/error.h"

namespace kf::jit {
namespace {

bool names_architecture(const std::string& option) {
  return option.starts_with("--gpu-architecture") || option.starts_with("-arch");
}

// Options that bring in what the key does not hold.
bool names_files(const std::string& option) {
  for (const char* prefix :
       {"-I", "--include-path", "-include", "--pre-include", "-ptx-include", "--use-pch", "-pch"})
    if (option.starts_with(prefix)) return true;
  return false;
}

// "sm_90", "compute_90a": 90.
int architecture_number(const std::string& architecture) {
  int number = 0;
  const std::size_t at = architecture.find('_');
  if (at != std::string::npos)
    std::from_chars(architecture.data() + at + 1, architecture.data() + architecture.size(), number);
  if (number < 10)
    throw_invalid(
        fmt::format("CUDA source: architecture: expected a name such as sm_90, got {}", architecture));
  return number;
}

// The architecture, or, where this NVRTC is older, its newest as PTX.
std::string known_architecture(const std::string& architecture, const Nvrtc& n) {
  const int wanted = architecture_number(architecture);
  int count = 0;
  if (n.num_architectures(&count) != 0 || count <= 0) return architecture;
  std::vector<int> known(static_cast<std::size_t>(count));
  if (n.architectures(known.data()) != 0) return architecture;
  if (std::ranges::find(known, wanted) != known.end()) return architecture;
  int below = 0;
  for (const int k : known)
    if (k < wanted) below = std::max(below, k);
  if (below == 0)
    throw Error(ErrorCode::unavailable,
                fmt::format("NVRTC: expected to compile for {}, its oldest is sm_{}: install "
                            "an older one",
                            architecture, *std::ranges::min_element(known)));
  return fmt::format("compute_{}", below);
}

const char* type_of(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return "__half";
    case DType::bf16:
      return "__nv_bfloat16";
    default:
      return "float";
  }
}

// One program, destroyed at the end.
class Program {
 public:
  Program(const Nvrtc& n, const std::string& source, const std::string& name) : n_(n) {
    check(n_.create(&program_, source.c_str(), name.c_str(), 0, nullptr, nullptr), "nvrtcCreateProgram");
  }
  ~Program() { n_.destroy(&program_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void check(int status, const char* what) const {
    if (status != 0)
      throw Error(ErrorCode::unavailable, fmt::format("{}: {}", what, n_.error_string(status)));
  }
  std::string text(int (*size)(Nvrtc::Program, std::size_t*), int (*get)(Nvrtc::Program, char*)) const {
    std::size_t bytes = 0;
    if (size(program_, &bytes) != 0 || bytes == 0) return {};
    std::string s(bytes, '\0');
    if (get(program_, s.data()) != 0) return {};
    return s;
  }
  Nvrtc::Program get() const { return program_; }

 private:
  const Nvrtc& n_;
  Nvrtc::Program program_ = nullptr;
};

std::string without_nul(std::string s) {
  while (!s.empty() && (s.back() == '\0' || s.back() == '\n')) s.pop_back();
  return s;
}

CompiledCuda compile_now(const std::string& name, const CudaSource& source,
                         const std::vector<std::string>& options, const Nvrtc& n) {
  Program program(n, source.source, name + ".cu");
  program.check(n.add_name(program.get(), source.entry.c_str()), "nvrtcAddNameExpression");
  std::vector<const char*> given;
  for (const std::string& o : options) given.push_back(o.c_str());
  const int status = n.compile(program.get(), static_cast<int>(given.size()), given.data());
  CompiledCuda c;
  c.log = without_nul(program.text(n.log_size, n.log));
  if (status != 0)
    throw Error(ErrorCode::invalid_argument,
                fmt::format("{}: the CUDA source does not compile ({}, options {}):\n{}", name,
                            n.error_string(status), fmt::join(options, " "),
                            c.log.empty() ? "NVRTC's log is empty" : c.log),
                {{"kernel", name}, {"log", c.log}});
  const char* symbol = nullptr;
  program.check(n.lowered_name(program.get(), source.entry.c_str(), &symbol), "nvrtcGetLoweredName");
  c.symbol = symbol;
  const std::string ptx = program.text(n.ptx_size, n.ptx);
  c.parameters = ptx_parameters(ptx, c.symbol);
  c.image = program.text(n.cubin_size, n.cubin);
  if (c.image.empty()) c.image = ptx;
  if (c.image.empty())
    throw Error(ErrorCode::unavailable, fmt::format("{}: NVRTC gave neither code nor PTX", name));
  return c;
}

}  // namespace

std::vector<std::string> compile_options(const CudaSource& source, const std::string& architecture,
                                         DType dtype, const Nvrtc& n) {
  std::vector<std::string> options;
  if (std::ranges::none_of(source.options, names_architecture))
    options.push_back("--gpu-architecture=" + known_architecture(architecture, n));
  options.push_back(fmt::format("-DKF_TYPE={}", type_of(dtype)));
  if (const std::string folder = include_folder(n); !folder.empty()) options.push_back("-I" + folder);
  options.insert(options.end(), source.options.begin(), source.options.end());
  return options;
}

std::string compile_key(const CudaSource& source, const std::vector<std::string>& options, const Nvrtc& n) {
  int major = 0, minor = 0;
  n.version(&major, &minor);
  return fmt::format("NVRTC {}.{}\n{}\n{}\n{}", major, minor, fmt::join(options, "\n"), source.entry,
                     source.source);
}

std::string own_architecture(const std::string& isa) {
  constexpr int kFirstWithInstructionsOfItsOwn = 90;
  return architecture_number(isa) >= kFirstWithInstructionsOfItsOwn ? isa + "a" : isa;
}

CompiledCuda compile(const std::string& name, const CudaSource& source, const std::string& architecture,
                     DType dtype, const Nvrtc& n, const std::string& folder) {
  if (!n.problem().empty())
    throw Error(
        ErrorCode::unavailable,
        fmt::format("{}: CUDA source needs NVRTC: {} (install nvidia-cuda-nvrtc, or name its folder in "
                    "KF_LIBRARY_PATH)",
                    name, n.problem()),
        {{"kernel", name}});
  const std::vector<std::string> options = compile_options(source, architecture, dtype, n);
  const bool keep = !folder.empty() && std::ranges::none_of(source.options, names_files);
  const std::string key = keep ? compile_key(source, options, n) : "";
  if (keep)
    if (std::optional<CompiledCuda> found = read_cached(folder, key)) return *std::move(found);
  CompiledCuda compiled = compile_now(name, source, options, n);
  if (keep) write_cached(folder, key, compiled);
  return compiled;
}

std::vector<std::string> ptx_parameters(const std::string& ptx, const std::string& symbol) {
  const auto fail = [&](const std::string& why) {
    throw_invalid(fmt::format("CUDA source: {}: {}", symbol, why));
  };
  std::size_t begin = ptx.find(".entry " + symbol + "(");
  std::vector<std::string> types;
  if (begin == std::string::npos) {
    if (ptx.find(".entry " + symbol) == std::string::npos)
      fail("expected a __global__ function, got none in the PTX");
    return types;  // a function without parameters
  }
  begin = ptx.find('(', begin);
  const std::string list = ptx.substr(begin + 1, ptx.find(')', begin) - begin - 1);
  for (std::size_t at = list.find(".param"); at != std::string::npos; at = list.find(".param", at + 1)) {
    const std::string one =
        list.substr(at + 6, list.find(',', at) - at - 6);  // " .u64 .ptr .align 1 f_param_0"
    const std::size_t dot = one.find('.');
    const std::string type =
        dot == std::string::npos ? "" : one.substr(dot + 1, one.find_first_of(" \t", dot) - dot - 1);
    if (type == "align" || one.find('[') != std::string::npos)
      fail(fmt::format("parameter {}: expected a pointer or a number, got a structure", types.size()));
    types.push_back(type);
  }
  return types;
}

}  // namespace kf::jit

namespace kf {

CompiledCuda compile_cuda(const std::string& name, const CudaSource& source, const std::string& architecture,
                          DType dtype) {
  return jit::compile(name, source, architecture, dtype, jit::nvrtc(), jit::cuda_cache_folder());
}

}  // namespace kf
