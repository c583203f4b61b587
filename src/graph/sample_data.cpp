#include "graph/sample_data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>

#include "core/half.h"
#include "graph/reflect.h"
#include "kf/ops/attention.h"
#include "kf/ops/quantization.h"

namespace kf {
namespace {

std::int64_t element_offset(const TensorView& t, std::int64_t flat) {
  std::int64_t offset = 0;
  for (int i = t.rank - 1; i >= 0; --i) {
    offset += flat % t.shape[i] * t.strides[i];
    flat /= t.shape[i];
  }
  return offset;
}

void store(const TensorView& t, std::int64_t flat, double value) {
  const std::int64_t at = element_offset(t, flat);
  switch (t.dtype) {
    case DType::f32:
      t.as<float>()[at] = static_cast<float>(value);
      return;
    case DType::f16:
      t.as<std::uint16_t>()[at] = f32_to_f16(static_cast<float>(value));
      return;
    case DType::bf16:
      t.as<std::uint16_t>()[at] = f32_to_bf16(static_cast<float>(value));
      return;
    case DType::i32:
      t.as<std::int32_t>()[at] = static_cast<std::int32_t>(value);
      return;
    case DType::i64:
      t.as<std::int64_t>()[at] = static_cast<std::int64_t>(value);
      return;
    case DType::boolean:
      t.as<std::uint8_t>()[at] = value != 0;
      return;
    default:
      return;  // zeros serve: no table or activation has another dtype
  }
}

// Codes as integers, -128 to 127, in the order of the values that they stand for.
double code(DType dtype, std::uint8_t bits) {
  if (dtype == DType::i8) return static_cast<std::int8_t>(bits);
  return bits & 0x80 ? -(bits & 0x7f) : bits;
}

double load(const TensorView& t, std::int64_t flat) {
  const std::int64_t at = element_offset(t, flat);
  switch (t.dtype) {
    case DType::f32:
      return t.as<float>()[at];
    case DType::f16:
      return f16_to_f32(t.as<std::uint16_t>()[at]);
    case DType::bf16:
      return bf16_to_f32(t.as<std::uint16_t>()[at]);
    case DType::i32:
      return t.as<std::int32_t>()[at];
    case DType::i64:
      return static_cast<double>(t.as<std::int64_t>()[at]);
    case DType::i8:
    case DType::fp8_e4m3:
    case DType::fp8_e5m2:
      return code(t.dtype, t.as<std::uint8_t>()[at]);
    default:
      return 0;
  }
}

// What bounds the entries of tables, read off the ops that use them.
class TableBounds {
 public:
  explicit TableBounds(const Graph& g) {
    for (const Node& n : g.nodes()) {
      for (const SlotInfo& s : op_slots(n.op())) {
        const TensorView& t = s.in(n.params.data());
        if (!t.present()) continue;
        if (s.name == "q") total_q = t.dim(0);
        if (s.name == "scores" || s.name == "probs") total_q = t.dim(1);
        if (s.name == "k" || s.name == "v") note_keys(n, t);
        if (s.name == "cos") max_position = t.dim(0);
        if (s.name == "table") table_rows = t.dim(0);
        if (s.name == "k_cache") num_slots = t.dim(0) * page_rows(n, t);
        if (s.name == "block_tables") max_pages = t.dim(1);
        if (s.name == "cu_seqlens_k") sequences = t.dim(0) - 1;
        if (s.name == "block_layout") layout_columns = t.dim(3);
      }
      if (const auto size = get_attr(n.params, "block_size_k")) key_block = std::get<std::int64_t>(*size);
      // The matrix of an unfused form has a column for each key.
      if (n.op() == Op::attention_scores) narrow(n.params.as<AttentionScoresParams>().scores);
      if (n.op() == Op::attention_mask) narrow(n.params.as<AttentionMaskParams>().scores);
      if (n.op() == Op::attention_values) narrow(n.params.as<AttentionValuesParams>().probs);
    }
  }

  std::int64_t total_q = 0, total_k = 0, num_pages = 1, page_size = 1, max_pages = 0, num_slots = 1;
  std::int64_t sequences = 1, dense_k = 0, layout_columns = 1, key_block = 1;  // of a block layout
  std::int64_t max_position = 1, table_rows = 1, seqlen_k_max = std::numeric_limits<std::int64_t>::max();

  // Keys of a sequence.
  std::int64_t keys() const {
    const std::int64_t all = max_pages > 0 ? max_pages * page_size
                             : dense_k > 0 ? dense_k
                                           : total_k / std::max<std::int64_t>(sequences, 1);
    return std::min(all, seqlen_k_max);
  }

 private:
  void narrow(const TensorView& matrix) { seqlen_k_max = std::min(seqlen_k_max, matrix.dim(-1)); }

  static std::int64_t page_rows(const Node& n, const TensorView& pool) {
    const bool hnd = get_attr(n.params, "kv_layout") == AttrValue(std::string_view("HND"));
    return pool.rank == 4 ? pool.dim(hnd ? 2 : 1) : 1;
  }
  void note_keys(const Node& n, const TensorView& t) {
    total_k = t.dim(0);
    num_pages = t.dim(0);
    if (t.rank == 4) page_size = page_rows(n, t), dense_k = t.dim(1);
  }
};

// Entry i of a table of `count` entries.
std::int64_t table_entry(std::string_view slot, std::int64_t i, std::int64_t count, const TableBounds& b) {
  const auto even_split = [&](std::int64_t total) { return count > 1 ? total * i / (count - 1) : 0; };
  if (slot == "positions") return i % std::max<std::int64_t>(b.max_position, 1);
  if (slot == "slot_mapping") return i < b.num_slots ? i : -1;
  if (slot == "ids") return i % std::max<std::int64_t>(b.table_rows, 1);
  if (slot == "cu_seqlens_q") return even_split(b.total_q);
  if (slot == "cu_seqlens_k") return even_split(b.total_k);
  if (slot == "block_tables") return i % std::max<std::int64_t>(b.num_pages, 1);
  if (slot == "attn_mask" || slot == "block_layout") return i % 5 != 0;  // boolean: mostly allowed
  if (slot == "listed_blocks") {  // a layout of lists: the first key blocks
    const std::int64_t column = i % std::max<std::int64_t>(b.layout_columns, 1);
    return column * std::max<std::int64_t>(b.key_block, 1) < b.keys() ? column : -1;
  }
  if (slot == "context_lens") return std::min(b.max_pages * b.page_size, b.seqlen_k_max);
  return 0;
}

// Any codes of a weight with scales: all of int4 and i8; of fp8 those below 2, which have no infinity and no NaN.
void fill_codes(const SampleData& data, std::size_t bytes, std::mt19937_64& rng) {
  const bool is_fp8 = data.view.dtype == DType::fp8_e4m3 || data.view.dtype == DType::fp8_e5m2;
  auto* const to = static_cast<std::uint8_t*>(data.storage.get());
  for (std::size_t i = 0; i < bytes; ++i) to[i] = static_cast<std::uint8_t>(rng() & (is_fp8 ? 0xBFu : 0xFFu));
}

// The graph's input that a node reads in a slot; null: there is none.
SampleData* input_of(const Graph& g, const Node& n, std::string_view slot,
                     std::map<std::string, SampleData>& all) {
  for (const auto& [index, value] : n.inputs) {
    if (op_slots(n.op())[index].name != slot) continue;
    for (const auto& [name, v] : g.inputs())
      if (v == g.root(value)) return &all.at(name);
  }
  return nullptr;
}

// Masks and offsets of sparse weights: the first n of every m, or as many values of each row as they divide into.
void fill_sparsity(const Graph& g, std::map<std::string, SampleData>& all) {
  for (const Node& node : g.nodes())
    for (const SlotInfo& slot : op_slots(node.op())) {
      if (!slot.name.ends_with("_mask")) continue;
      const std::string operand(slot.name.substr(0, slot.name.size() - 5));
      const auto n = get_attr(node.params, operand + "_n"), m = get_attr(node.params, operand + "_m");
      SampleData *const mask = input_of(g, node, slot.name, all), *const values =
                                                                      input_of(g, node, operand, all);
      if (!n || !m || mask == nullptr || values == nullptr) continue;
      SampleData* const offsets = input_of(g, node, operand + "_offsets", all);
      const std::int64_t rows = mask->view.dim(0), total = values->view.numel();
      for (std::int64_t row = 0; row < rows; ++row) {
        auto* const bytes = mask->view.as<std::uint8_t>() + row * mask->view.stride(0);
        const auto keep = [&](std::int64_t k) { bytes[k / 8] |= static_cast<std::uint8_t>(1 << k % 8); };
        if (offsets == nullptr) {
          const std::int64_t of = std::get<std::int64_t>(*m), kept = std::get<std::int64_t>(*n);
          for (std::int64_t i = 0; i < values->view.dim(1); ++i) keep(i / kept * of + i % kept);
          continue;
        }
        const std::int64_t first = total * row / rows, count = total * (row + 1) / rows - first;
        store(offsets->view, row, static_cast<double>(first));
        // Within the columns: the last byte of a row has one at least.
        const std::int64_t columns = std::max(count, mask->view.dim(1) * 8 - 7);
        for (std::int64_t i = 0; i < count; ++i) keep(i * columns / count);
      }
      if (offsets != nullptr) store(offsets->view, rows, static_cast<double>(total));
    }
}

std::string_view first_slot(const Graph& g, ValueId v) {
  for (const Node& n : g.nodes())
    for (auto [slot, input] : n.inputs)
      if (g.root(input) == v) return op_slots(n.op())[slot].name;
  return {};
}

}  // namespace

std::size_t bytes_before(const TensorView& t) {
  if (t.numel() == 0) return 0;
  std::int64_t elements = 0;
  for (int i = 0; i < t.rank; ++i) elements -= std::min<std::int64_t>((t.shape[i] - 1) * t.strides[i], 0);
  const DTypeInfo& type = dtype_info(t.dtype);
  return static_cast<std::size_t>(elements / type.block_elems * type.block_bytes);
}

std::size_t span_bytes(const TensorView& t) {
  if (t.numel() == 0) return 0;
  std::int64_t last = 0;
  for (int i = 0; i < t.rank; ++i) last += std::max<std::int64_t>((t.shape[i] - 1) * t.strides[i], 0);
  const DTypeInfo& type = dtype_info(t.dtype);
  return static_cast<std::size_t>((last / type.block_elems + 1) * type.block_bytes) + bytes_before(t);
}

namespace {

// Where the first element lies in memory that begins with the lowest.
void* first_element(const std::shared_ptr<void>& memory, const TensorView& t) {
  return static_cast<std::byte*>(memory.get()) + bytes_before(t);
}

}  // namespace

std::map<std::string, SampleData> sample_inputs(const Graph& graph) {
  const TableBounds bounds(graph);
  // A prime number of values, repeated: quick for large caches, and no row equals the next.
  std::mt19937_64 rng(1);
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::array<double, 8191> floats;
  for (double& f : floats) f = uniform(rng);
  std::map<std::string, SampleData> all;
  for (const auto& [name, v] : graph.inputs()) {
    SampleData data;
    data.view = graph.value(v).tensor;
    const std::size_t bytes = span_bytes(data.view);
    data.storage = allocate_host(bytes);
    if (bytes > 0) std::memset(data.storage.get(), 0, bytes);
    data.view.data = first_element(data.storage, data.view);
    data.view.device = {};
    std::string_view slot = first_slot(graph, v);
    if (slot == "block_layout" && data.view.dtype == DType::i32) slot = "listed_blocks";
    const std::int64_t count = data.view.numel();
    const bool is_float = is_activation_dtype(data.view.dtype);
    // Scales are positive; zeros stay 0.
    const bool is_scale = slot.ends_with("_scales") || slot == "static_scale";
    if (needs_scales(data.view.dtype) && !slot.ends_with("_zeros")) fill_codes(data, bytes, rng);
    for (std::int64_t i = 0; i < count; ++i)
      store(data.view, i,
            is_scale   ? (2 + floats[static_cast<std::size_t>(i) % floats.size()]) / 64
            : is_float ? floats[static_cast<std::size_t>(i) % floats.size()]
                       : static_cast<double>(table_entry(slot, i, count, bounds)));
    all.emplace(name, std::move(data));
  }
  fill_sparsity(graph, all);
  return all;
}

SampleData copy_to(const Dispatcher& dispatcher, const SampleData& data) {
  const std::size_t bytes = span_bytes(data.view);
  SampleData copy{dispatcher.allocate(bytes), data.view};
  dispatcher.copy(copy.storage.get(), data.storage.get(), bytes, CopyDirection::to_device);
  copy.view.data = first_element(copy.storage, copy.view);
  copy.view.device = dispatcher.caps().device;
  return copy;
}

SampleData copy_from(const Dispatcher& dispatcher, const TensorView& tensor) {
  const std::size_t bytes = span_bytes(tensor);
  SampleData copy{allocate_host(bytes), tensor};
  dispatcher.copy(copy.storage.get(), static_cast<const std::byte*>(tensor.data) - bytes_before(tensor),
                  bytes, CopyDirection::to_host);
  dispatcher.synchronize();
  copy.view.data = first_element(copy.storage, copy.view);
  copy.view.device = {};
  return copy;
}

double relative_difference(const TensorView& a, const TensorView& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const bool is_code = needs_scales(a.dtype) && a.dtype != DType::int4;  // one apart is no error
  const bool is_float = is_activation_dtype(a.dtype) || is_code;
  double difference = 0, scale = 0;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double x = load(a, i), y = load(b, i);
    if (std::isfinite(x)) scale = std::max(scale, std::abs(x));
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    if (!is_float || !std::isfinite(x) || !std::isfinite(y)) return kInfinity;
    difference = std::max(difference, std::abs(x - y));
  }
  return difference == 0 ? 0 : difference / std::max(scale, std::numeric_limits<double>::min());
}

}  // namespace kf
