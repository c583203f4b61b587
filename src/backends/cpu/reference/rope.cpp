#include "backends/cpu/reference/rope.h"

#include <vector>

#include "backends/cpu/reference/scalar.h"
#include "backends/cpu/rope/heads.h"

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

void write_head(const Heads& heads, std::int64_t h, const std::vector<double>& head) {
  TensorView t;
  t.data = heads.data;
  t.dtype = heads.dtype;
  for (std::size_t i = 0; i < head.size(); ++i)
    write(t, h * heads.stride + static_cast<std::int64_t>(i), head[i]);
}

// One token's heads of x, to `out`; P names the tables.
template <class P>
void rope_token(const P& p, const TensorView& x, const TensorView& norm_weight, std::int64_t token,
                const Heads& out) {
  const std::int64_t position = p.positions.template as<std::int32_t>()[token * p.positions.stride(0)];
  for (std::int64_t h = 0; h < x.dim(1); ++h) {
    std::vector<double> head = head_of(x, token, h);
    if (norm_weight.present()) normalise(head, norm_weight, p.norm_weight_offset, p.norm_eps);
    rotate(head, p.cos, p.sin, position, p.interleaved);
    write_head(out, h, head);
  }
}

void copy_token(const TensorView& x, std::int64_t token, const Heads& out) {
  for (std::int64_t h = 0; h < x.dim(1); ++h) write_head(out, h, head_of(x, token, h));
}

}  // namespace

void rope(const RopeParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.x.dim(0); ++t) rope_token(p, p.x, p.norm_weight, t, heads_of(p.out, t));
}

void append_kv(const AppendKvParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.k.dim(0); ++t) {
    const std::int64_t slot = slot_of(p.slot_mapping, t);
    if (slot < 0) continue;
    copy_token(p.k, t, heads_of_slot(p.k_cache, p.kv_layout, slot));
    copy_token(p.v, t, heads_of_slot(p.v_cache, p.kv_layout, slot));
  }
}

void rope_append(const RopeAppendParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.q.dim(0); ++t) {
    rope_token(p, p.q, p.q_norm_weight, t, heads_of(p.q_out, t));
    const std::int64_t slot = slot_of(p.slot_mapping, t);
    if (slot < 0) continue;
    rope_token(p, p.k, p.k_norm_weight, t, heads_of_slot(p.k_cache, p.kv_layout, slot));
    copy_token(p.v, t, heads_of_slot(p.v_cache, p.kv_layout, slot));
  }
}

}  // namespace kf::cpu::reference
