// Attention over paged caches, whose tables and layouts of key blocks hold whatever comes: entries out of range are refused, and
// with those in range every kernel agrees with the reference and reads nothing else.

#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "kf/kf.h"

namespace {

using kf::DType;
using kf::Tensor;
using kf::TensorView;

// Small values that depend on the place alone; `nan` for memory that no sequence has.
Tensor values(std::initializer_list<std::int64_t> shape, int seed) {
  Tensor t(DType::f32, shape);
  const TensorView v = t.view();
  for (std::int64_t i = 0; i < v.numel(); ++i)
    v.as<float>()[i] = static_cast<float>((i * 37 + seed * 101) % 61 - 30) / 16.0f;
  return t;
}

Tensor table(const std::vector<std::int32_t>& entries, std::int64_t rows, std::int64_t columns) {
  Tensor t(DType::i32, {rows, columns});
  std::copy(entries.begin(), entries.end(), t.view().as<std::int32_t>());
  return t;
}
Tensor list(const std::vector<std::int32_t>& entries) {
  Tensor t(DType::i32, {static_cast<std::int64_t>(entries.size())});
  std::copy(entries.begin(), entries.end(), t.view().as<std::int32_t>());
  return t;
}

// A layout of key blocks of any size, boolean or lists, whose entries are whatever comes.
Tensor layout_of(FuzzedDataProvider& in, std::int64_t batch, std::int64_t kv_heads, std::int64_t group) {
  const bool lists = in.ConsumeBool();
  const std::int64_t columns = in.ConsumeIntegralInRange(0, 12);
  Tensor t(lists ? DType::i32 : DType::boolean,
           {in.ConsumeBool() ? batch : 1, kv_heads * group, in.ConsumeBool() ? kv_heads : 1,
            in.ConsumeIntegralInRange(1, 4), columns});
  for (std::int64_t i = 0; i < t.view().numel(); ++i) {
    if (lists) {
      t.view().as<std::int32_t>()[i] =
          in.ConsumeBool() ? static_cast<std::int32_t>(i % columns) : in.ConsumeIntegralInRange(-2, 13);
    } else {
      t.view().as<std::uint8_t>()[i] = in.ConsumeBool();
    }
  }
  return t;
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider in(bytes, size);
  const std::int64_t batch = in.ConsumeIntegralInRange(1, 3), kv_heads = in.ConsumeIntegralInRange(1, 2),
                     group = in.ConsumeIntegralInRange(1, 3), head_dim = 8 * in.ConsumeIntegralInRange(1, 4),
                     page = in.ConsumeIntegralInRange(1, 20), pages = in.ConsumeIntegralInRange(1, 12),
                     columns = in.ConsumeIntegralInRange(0, 8);
  const bool hnd = in.ConsumeBool();
  std::vector<std::int32_t> entries, lengths, cu = {0};
  for (std::int64_t i = 0; i < batch * columns; ++i)
    entries.push_back(in.ConsumeIntegralInRange<std::int32_t>(-2, static_cast<std::int32_t>(pages)));
  for (std::int64_t b = 0; b < batch; ++b) {
    lengths.push_back(
        in.ConsumeIntegralInRange<std::int32_t>(-1, static_cast<std::int32_t>(columns * page + 1)));
    cu.push_back(cu.back() + in.ConsumeIntegralInRange<std::int32_t>(0, 20));
  }
  const Tensor q = values({cu.back(), kv_heads * group, head_dim}, 1);
  const auto pool = [&](int seed) {
    return hnd ? values({pages, kv_heads, page, head_dim}, seed)
               : values({pages, page, kv_heads, head_dim}, seed);
  };
  const Tensor k = pool(2), v = pool(3), block_tables = table(entries, batch, columns),
               context_lens = list(lengths), cu_seqlens_q = list(cu);
  kf::AttentionParams p;
  p.q = q;
  p.k = k;
  p.v = v;
  p.tables.block_tables = block_tables;
  p.tables.context_lens = context_lens;
  p.tables.cu_seqlens_q = cu_seqlens_q;
  p.tables.kv_layout = hnd ? kf::KvLayout::hnd : kf::KvLayout::nhd;
  p.causal = in.ConsumeBool();
  p.window_left = in.ConsumeIntegralInRange(-1, 60);
  p.window_right = in.ConsumeIntegralInRange(-1, 10);
  p.softcap = in.ConsumeBool() ? 5.0f : 0.0f;
  // Capped scores that lie close may be equal for one kernel and not for another, which then keep other ones.
  if (p.softcap == 0.0f) {
    p.sparsity.keep_n = in.ConsumeIntegralInRange(-1, 4);
    p.sparsity.keep_m = in.ConsumeIntegralInRange(-1, 6);
    // So do scores that are equal, unless scaling is exact wherever in a product it happens.
    p.softmax_scale = 0.25f;
  }
  const Tensor layout = layout_of(in, batch, kv_heads, group);
  if (in.ConsumeBool()) {
    p.sparsity.block_layout = layout;
    p.sparsity.block_size_q = in.ConsumeIntegralInRange(-1, 16);
    p.sparsity.block_size_k = in.ConsumeIntegralInRange(-1, 24);
  }

  const auto run = [&](const char* kernel, Tensor& out) {
    p.out = out;
    try {
      kf::default_dispatcher().run(p, {.families = ~0u, .kernel = kernel});
      return std::string();
    } catch (const kf::Error& e) {
      if (e.code() != kf::ErrorCode::invalid_argument) fail(e.what());
      return std::string(e.what());
    }
  };
  Tensor expected(DType::f32, {cu.back(), kv_heads * group, head_dim});
  const std::string refused = run("cpu::attention_reference", expected);
  for (const char* kernel :
       {"cpu::attention_flash", "cpu::attention_flash_fixed", "cpu::attention_unfused"}) {
    // The fused ones take powers of two alone, and say so.
    const std::int64_t m = p.sparsity.keep_m;
    if (m > 0 && (m & (m - 1)) != 0 && std::string(kernel) != "cpu::attention_unfused") continue;
    Tensor got(DType::f32, {cu.back(), kv_heads * group, head_dim});
    if (run(kernel, got) != refused)
      fail(std::string(kernel) + ": refused otherwise than the reference: " + refused);
    if (!refused.empty()) continue;
    for (std::int64_t i = 0; i < got.view().numel(); ++i) {
      const float a = got.view().as<float>()[i], b = expected.view().as<float>()[i];
      if (!(std::abs(a - b) <= 1e-4f))
        fail(std::string(kernel) + ": " + std::to_string(a) + ", reference " + std::to_string(b));
    }
  }
  return 0;
}
