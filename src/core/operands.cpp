#include "core/operands.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "kf/error.h"

namespace kf {
namespace {

[[noreturn]] void fail(const char* op, const char* name, const std::string& expected,
                       const std::string& got) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}: {}: expected {}, got {}", op, name, expected, got),
              {{"op", op}, {"operand", name}, {"expected", expected}, {"got", got}});
}

class FirstDevice final : public FieldVisitor {
 public:
  Device device;
  void tensor(const char*, TensorView& t, Role, bool) override {
    if (t.present() && !std::exchange(found_, true)) device = t.device;
  }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char*, int&, std::span<const char* const>) override {}

 private:
  bool found_ = false;
};

class LayoutChecker final : public FieldVisitor {
 public:
  LayoutChecker(Op op, Device device) : op_(op_name(op)), device_(device) {}

  void tensor(const char* name, TensorView& t, Role, bool) override {
    if (!t.present()) return;
    if (t.rank > kMaxRank)
      fail(op_, name, fmt::format("at most {} dimensions", kMaxRank), std::to_string(t.rank));
    if (t.device != device_)
      fail(op_, name, fmt::format("a tensor on {}", to_string(device_)),
           fmt::format("one on {}", to_string(t.device)));
    if (const std::string problem = layout_problem(t); !problem.empty())
      fail(op_, name, problem, to_string(t));
  }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    if (value < 0 || static_cast<std::size_t>(value) >= names.size())
      fail(op_, name, fmt::format("0 to {}", names.size() - 1), std::to_string(value));
  }

 private:
  const char* op_;
  Device device_;
};

class MemoryChecker final : public FieldVisitor {
 public:
  explicit MemoryChecker(Op op) : op_(op_name(op)) {}
  void tensor(const char* name, TensorView& t, Role role, bool) override {
    check_memory(op_, name, t);
    if (role == Role::in || !t.present()) return;
    for (std::size_t i = 0; i < num_written_; ++i)
      if (share_memory(t, *written_[i].second))
        fail(op_, name, "memory of its own", fmt::format("memory shared with {}", written_[i].first));
    if (num_written_ < written_.size()) written_[num_written_++] = {name, &t};
  }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char*, int&, std::span<const char* const>) override {}

 private:
  const char* op_;
  std::array<std::pair<const char*, const TensorView*>, 8> written_;  // no op writes more
  std::size_t num_written_ = 0;
};

// [first, last) byte addresses that a view spans.
std::pair<std::intptr_t, std::intptr_t> extent(const TensorView& t) {
  const DTypeInfo& info = dtype_info(t.dtype);
  std::int64_t lo = 0, hi = 0;  // elements from the first one
  for (int i = 0; i < t.rank; ++i) {
    const std::int64_t reach = (t.shape[i] - 1) * t.strides[i];
    (reach < 0 ? lo : hi) += reach;
  }
  const auto base = reinterpret_cast<std::intptr_t>(t.data);
  return {base + lo / info.block_elems * info.block_bytes,
          base + (hi / info.block_elems + 1) * info.block_bytes};
}

// Whether `distance` is a sum of i * stride over these dimensions, |i| < size: the distance of two elements of one
// layout. Strides are positive, largest first, and each steps over all that lies within it.
bool is_distance(std::int64_t distance, std::span<const std::pair<std::int64_t, std::int64_t>> dims) {
  if (dims.empty()) return distance == 0;
  const auto [stride, size] = dims.front();
  // What lies within is shorter than a stride, so only the two nearest multiples can be meant.
  const std::int64_t down = distance / stride;
  for (const std::int64_t i : {down - 1, down, down + 1})
    if (i > -size && i < size && is_distance(distance - i * stride, dims.subspan(1))) return true;
  return false;
}

}  // namespace

std::string layout_problem(const TensorView& t) {
  const DTypeInfo& info = dtype_info(t.dtype);
  std::int64_t numel = 1, reach = 0, part = 0;
  bool overflow = false, empty = false;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 0) return "dimensions of 0 or more";
    empty = empty || t.shape[i] == 0;
    const std::int64_t stride =
        t.strides[i] < 0 ? -(t.strides[i] + 1) : t.strides[i];  // no overflow at -2^63
    const std::int64_t size = std::max<std::int64_t>(t.shape[i], 1);
    overflow |= __builtin_mul_overflow(numel, size, &numel);
    overflow |= __builtin_mul_overflow(stride, size - 1, &part);
    overflow |= __builtin_add_overflow(reach, part, &reach);
  }
  if (empty && !overflow) return {};
  overflow |= __builtin_mul_overflow(numel, std::int64_t{info.block_bytes}, &part);
  overflow |= __builtin_add_overflow(reach, std::int64_t{info.block_elems}, &reach);
  overflow |= __builtin_mul_overflow(reach, std::int64_t{info.block_bytes}, &part);
  return overflow ? "less than 2^63 bytes" : std::string();
}

Device device_of(Op op, const void* params) {
  FirstDevice first;
  op_info(op).visit(const_cast<void*>(params), first);  // only read
  return first.device;
}

void check_layouts(Op op, const void* params, Device device) {
  LayoutChecker checker(op, device);
  op_info(op).visit(const_cast<void*>(params), checker);  // only read
}

void check_memory(const char* op, const char* name, const TensorView& t) {
  if (!t.present() || t.numel() == 0) return;
  if (t.data == nullptr) fail(op, name, "memory", fmt::format("a null pointer for {}", to_string(t)));
  const std::size_t alignment = dtype_alignment(t.dtype);
  if (const auto past = reinterpret_cast<std::uintptr_t>(t.data) % alignment; past != 0)
    fail(op, name, fmt::format("an address that is a multiple of {} for {}", alignment, dtype_name(t.dtype)),
         fmt::format("{}, which is {} past one", t.data, past));
}

void check_memory(Op op, const void* params) {
  MemoryChecker checker(op);
  op_info(op).visit(const_cast<void*>(params), checker);  // only read
}

bool share_memory(const TensorView& a, const TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  if (a_end <= b_begin || b_end <= a_begin) return false;
  if (a.dtype != b.dtype || !a.same_layout(b)) return true;
  const DTypeInfo& info = dtype_info(a.dtype);
  const std::int64_t bytes = b_begin - a_begin;
  if (info.block_elems != 1 || bytes % info.block_bytes != 0) return true;
  std::array<std::pair<std::int64_t, std::int64_t>, kMaxRank> dims;  // (stride, size)
  std::size_t n = 0;
  for (int i = 0; i < a.rank; ++i) {
    if (a.shape[i] <= 1) continue;
    const std::pair dim(std::abs(a.strides[i]), a.shape[i]);
    std::size_t at = n++;
    for (; at > 0 && dims[at - 1] < dim; --at) dims[at] = dims[at - 1];
    dims[at] = dim;
  }
  if (n > 0 && dims[n - 1].first == 0) return true;
  return is_distance(bytes / info.block_bytes, std::span(dims.data(), n));
}

}  // namespace kf
