#include "backends/cpu/reference/rope.h"

#include <vector>

#include "backends/cpu/reference/scalar.h"
#include "backends/cpu/rope/cache_slots.h"
#include "core/quantizer.h"

namespace kf::cpu::reference {
namespace {

std::vector<double> head_of(const TensorView& x, std::int64_t token, std::int64_t h) {
  std::vector<double> head(static_cast<std::size_t>(x.dim(2)));
  for (std::size_t i = 0; i < head.size(); ++i)
    head[i] = read(x, token * x.stride(0) + h * x.stride(1) + static_cast<std::int64_t>(i) * x.stride(2));
  return head;
}

void normalise(std::vector<double>& head, const TensorView& weight, double weight_offset, float eps) {
  double squares = 0;
  for (const double v : head) squares += v * v;
  const double deviation = std::sqrt(squares / static_cast<double>(head.size()) + static_cast<double>(eps));
  for (std::size_t i = 0; i < head.size(); ++i)
    head[i] =
        head[i] / deviation * (weight_offset + read(weight, static_cast<std::int64_t>(i) * weight.stride(0)));
}

void rotate(std::vector<double>& head, const TensorView& cos, const TensorView& sin, std::int64_t position,
            bool interleaved) {
  const std::int64_t half = cos.dim(1);
  for (std::int64_t i = 0; i < half; ++i) {
    const double c = read(cos, position * cos.stride(0) + i * cos.stride(1));
    const double s = read(sin, position * sin.stride(0) + i * sin.stride(1));
    double& x1 = head[static_cast<std::size_t>(interleaved ? 2 * i : i)];
    double& x2 = head[static_cast<std::size_t>(interleaved ? 2 * i + 1 : i + half)];
    const double y1 = x1 * c - x2 * s;
    x2 = x2 * c + x1 * s;
    x1 = y1;
  }
}

using HeadsOfToken = std::vector<std::vector<double>>;

void write_heads(const Heads& to, const HeadsOfToken& heads) {
  TensorView t;
  t.data = to.data;
  t.dtype = to.dtype;
  for (std::size_t h = 0; h < heads.size(); ++h)
    for (std::size_t i = 0; i < heads[h].size(); ++i)
      write(t, static_cast<std::int64_t>(h) * to.stride + static_cast<std::int64_t>(i), heads[h][i]);
}

// To a slot of a cache; of a quantized one, rounded to f32 and then as kf::quantize() does it.
void write_slot(const TensorView& cache, const Quantization& q, KvLayout layout, std::int64_t slot,
                const HeadsOfToken& heads) {
  const CacheSlots slots(cache, q, layout);
  if (!slots.quantized()) return write_heads(heads_of_slot(cache, layout, slot), heads);
  const auto n = static_cast<std::int64_t>(heads.size()), size = slots.group_size();
  const auto value = [&](std::int64_t h, std::int64_t i) {
    return static_cast<float>(heads[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)]);
  };
  for (std::int64_t h = 0; h < n; ++h)
    for (std::int64_t g = 0; g * size < cache.dim(-1); ++g) {
      QuantizationRange range;
      for (std::int64_t other = 0; other < n; ++other)
        for (std::int64_t i = g * size; i < (g + 1) * size; ++i)
          if (other == h || slots.heads_share_scales()) range.add(value(other, i));
      const std::int64_t scale_at = slots.scale_at(slot, h) + g, zero_at = slots.zero_at(slot, h) + g;
      const Quantizer quantizer = slots.computes_scales()
                                      ? Quantizer::store(cache.dtype, range, q, scale_at, zero_at)
                                      : Quantizer::load(cache.dtype, q, scale_at, zero_at);
      for (std::int64_t i = g * size; i < (g + 1) * size; ++i)
        quantizer.put(cache, slots.code_at(slot, h) + i, value(h, i));
    }
}

// One token's heads of x, turned; P names the tables.
template <class P>
HeadsOfToken turned(const P& p, const TensorView& x, const TensorView& norm_weight, std::int64_t token) {
  const std::int64_t position = p.positions.template as<std::int32_t>()[token * p.positions.stride(0)];
  HeadsOfToken heads;
  for (std::int64_t h = 0; h < x.dim(1); ++h) {
    heads.push_back(head_of(x, token, h));
    if (norm_weight.present()) normalise(heads.back(), norm_weight, p.norm_weight_offset, p.norm_eps);
    rotate(heads.back(), p.cos, p.sin, position, p.interleaved);
  }
  return heads;
}

HeadsOfToken heads_of_token(const TensorView& x, std::int64_t token) {
  HeadsOfToken heads;
  for (std::int64_t h = 0; h < x.dim(1); ++h) heads.push_back(head_of(x, token, h));
  return heads;
}

}  // namespace

void rope(const RopeParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.x.dim(0); ++t)
    write_heads(heads_of(p.out, t), turned(p, p.x, p.norm_weight, t));
}

void append_kv(const AppendKvParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.k.dim(0); ++t) {
    const std::int64_t slot = slot_of(p.slot_mapping, t);
    if (slot < 0) continue;
    write_slot(p.k_cache, p.k_cache_quantization, p.kv_layout, slot, heads_of_token(p.k, t));
    write_slot(p.v_cache, p.v_cache_quantization, p.kv_layout, slot, heads_of_token(p.v, t));
  }
}

void rope_append(const RopeAppendParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.q.dim(0); ++t) {
    write_heads(heads_of(p.q_out, t), turned(p, p.q, p.q_norm_weight, t));
    const std::int64_t slot = slot_of(p.slot_mapping, t);
    if (slot < 0) continue;
    write_slot(p.k_cache, p.k_cache_quantization, p.kv_layout, slot, turned(p, p.k, p.k_norm_weight, t));
    write_slot(p.v_cache, p.v_cache_quantization, p.kv_layout, slot, heads_of_token(p.v, t));
  }
}

}  // namespace kf::cpu::reference
