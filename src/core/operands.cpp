#include "core/operands.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "kf/error.h"

namespace kf {
namespace {

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
      fail_operand(op_, name, fmt::format("at most {} dimensions", kMaxRank), std::to_string(t.rank));
    if (t.device != device_)
      fail_operand(op_, name, fmt::format("a tensor on {}", to_string(device_)),
                   fmt::format("one on {}", to_string(t.device)));
    if (const std::string problem = layout_problem(t); !problem.empty())
      fail_operand(op_, name, problem, to_string(t));
  }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char* name, int& value, std::span<const char* const> names) override {
    if (value < 0 || static_cast<std::size_t>(value) >= names.size())
      fail_operand(op_, name, fmt::format("0 to {}", names.size() - 1), std::to_string(value));
  }

 private:
  const char* op_;
  Device device_;
};

// Memory of every operand, and what is written apart from all else but for what may lie in place.
class MemoryChecker final : public FieldVisitor {
 public:
  explicit MemoryChecker(Op op) : op_(op_name(op)) {}

  void tensor(const char* name, TensorView& t, Role role, bool) override {
    check_memory(op_, name, t);
    if (t.present() && count_ < operands_.size()) operands_[count_++] = {name, &t, role};
  }
  void may_alias(const char* output, const char* input) override {
    if (pair_count_ < pairs_.size()) pairs_[pair_count_++] = {output, input};
  }
  void attr(const char*, bool&) override {}
  void attr(const char*, std::int64_t&) override {}
  void attr(const char*, float&) override {}
  void attr(const char*, int&, std::span<const char* const>) override {}

  void finish() const {
    for (std::size_t i = 0; i < count_; ++i) {
      const Operand& written = operands_[i];
      if (written.role == Role::in) continue;
      for (std::size_t j = 0; j < count_; ++j) {
        const Operand& other = operands_[j];
        if (i == j || (other.role != Role::in && j > i)) continue;
        if (!share_memory(*written.view, *other.view) || in_place(written, other)) continue;
        fail_operand(op_, written.name, "memory of its own",
                     fmt::format("memory shared with {}", other.name));
      }
    }
  }

 private:
  struct Operand {
    const char* name;
    const TensorView* view;
    Role role;
  };
  bool in_place(const Operand& output, const Operand& input) const {
    if (output.view->data != input.view->data || output.view->dtype != input.view->dtype ||
        !output.view->same_layout(*input.view))
      return false;
    return std::any_of(
        pairs_.begin(), pairs_.begin() + static_cast<std::ptrdiff_t>(pair_count_),
        [&](const auto& pair) { return pair.first == output.name && pair.second == input.name; });
  }

  const char* op_;
  // More than any op has.
  std::array<Operand, 48> operands_;
  std::array<std::pair<std::string_view, std::string_view>, 16> pairs_;
  std::size_t count_ = 0, pair_count_ = 0;
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

// A dimension of two views that step alike: how many steps each takes. A view without the dimension takes one.
struct CommonAxis {
  std::int64_t stride, a, b;
};
using CommonAxes = std::array<CommonAxis, 2 * kMaxRank>;

// Strides and sizes, largest stride first, of dimensions of more than one element; those that continue each other are
// one. Returns how many.
std::size_t axes_of(const TensorView& t, std::array<std::pair<std::int64_t, std::int64_t>, kMaxRank>& axes) {
  std::size_t n = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] <= 1) continue;
    const std::pair axis(std::abs(t.strides[i]), t.shape[i]);
    std::size_t at = n++;
    for (; at > 0 && axes[at - 1] < axis; --at) axes[at] = axes[at - 1];
    axes[at] = axis;
  }
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (kept > 0 && axes[kept - 1].first == axes[i].first * axes[i].second)
      axes[kept - 1] = {axes[i].first, axes[i].second * axes[kept - 1].second};
    else
      axes[kept++] = axes[i];
  }
  return kept;
}

// Whether an element of b lies `distance` elements from one of a. Every stride steps over all that lies within it.
bool is_distance(std::int64_t distance, std::span<const CommonAxis> axes) {
  if (axes.empty()) return distance == 0;
  const auto [stride, a, b] = axes.front();
  // What lies within is shorter than a stride, so only the nearest multiples can be meant.
  const std::int64_t down = distance / stride;
  for (const std::int64_t i : {down - 1, down, down + 1})
    if (i > -b && i < a && is_distance(distance - i * stride, axes.subspan(1))) return true;
  return false;
}

}  // namespace

void fail_operand(const char* op, const std::string& name, const std::string& expected,
                  const std::string& got) {
  throw Error(ErrorCode::invalid_argument,
              fmt::format("{}: {}: expected {}, got {}", op, name, expected, got),
              {{"op", op}, {"operand", name}, {"expected", expected}, {"got", got}});
}

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
  if (t.data == nullptr) fail_operand(op, name, "memory", fmt::format("a null pointer for {}", to_string(t)));
  const std::size_t alignment = dtype_alignment(t.dtype);
  if (const auto past = reinterpret_cast<std::uintptr_t>(t.data) % alignment; past != 0)
    fail_operand(op, name,
                 fmt::format("an address that is a multiple of {} for {}", alignment, dtype_name(t.dtype)),
                 fmt::format("{}, which is {} past one", t.data, past));
}

void check_memory(Op op, const void* params) {
  MemoryChecker checker(op);
  op_info(op).visit(const_cast<void*>(params), checker);  // only read
  checker.finish();
}

bool share_memory(const TensorView& a, const TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  if (a_end <= b_begin || b_end <= a_begin) return false;
  // From lowest element to lowest element: which way a view steps does not matter.
  const DTypeInfo& info = dtype_info(a.dtype);
  const std::int64_t bytes = b_begin - a_begin;
  if (a.dtype != b.dtype || info.block_elems != 1 || bytes % info.block_bytes != 0) return true;
  std::array<std::pair<std::int64_t, std::int64_t>, kMaxRank> a_axes, b_axes;
  const std::size_t a_count = axes_of(a, a_axes), b_count = axes_of(b, b_axes);
  CommonAxes axes;
  std::size_t n = 0;
  for (std::size_t i = 0, j = 0; i < a_count || j < b_count;) {
    const std::int64_t a_stride = i < a_count ? a_axes[i].first : -1,
                       b_stride = j < b_count ? b_axes[j].first : -1;
    axes[n++] = {std::max(a_stride, b_stride), a_stride >= b_stride ? a_axes[i].second : 1,
                 b_stride >= a_stride ? b_axes[j].second : 1};
    if (a_stride >= b_stride) ++i;
    if (b_stride >= a_stride) ++j;
  }
  std::int64_t within = 0;  // the reach of the smaller strides
  for (std::size_t i = n; i-- > 0;) {
    if (axes[i].stride <= within) return true;
    within += axes[i].stride * (std::max(axes[i].a, axes[i].b) - 1);
  }
  return is_distance(bytes / info.block_bytes, std::span(axes.data(), n));
}

}  // namespace kf
