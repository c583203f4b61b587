#include "backends/cpu/reference/sampling.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "backends/cpu/reference/scalar.h"
#include "core/philox.h"

namespace kf::cpu::reference {
namespace {

std::vector<double> row_of(const TensorView& logits, std::int64_t row) {
  std::vector<double> values(static_cast<std::size_t>(logits.dim(1)));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = read(logits, row * logits.stride(0) + static_cast<std::int64_t>(i) * logits.stride(1));
  return values;
}

// The first of the largest; NaN is larger than all.
std::size_t argmax_of(const std::vector<double>& values) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < values.size(); ++i)
    if (!std::isnan(values[best]) && (values[i] > values[best] || std::isnan(values[i]))) best = i;
  return best;
}

// How many of the tokens, in descending order, add up to `target`.
std::size_t prefix(const std::vector<std::size_t>& order, const std::vector<double>& weights, double target) {
  double sum = 0;
  for (std::size_t n = 0; n < order.size(); ++n) {
    sum += weights[order[n]];
    if (sum >= target) return n + 1;
  }
  return order.size();
}

std::size_t sample_of(const SampleParams& p, const std::vector<double>& logits, double u) {
  const std::size_t best = argmax_of(logits);
  if (p.temperature == 0.0f || !std::isfinite(logits[best])) return best;
  std::vector<double> weights(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    weights[i] = std::exp((logits[i] - logits[best]) / p.temperature);

  std::vector<std::size_t> order(logits.size());  // descending, ascending by id among equals
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (p.top_k > 0 && static_cast<std::size_t>(p.top_k) < order.size())
    order.resize(static_cast<std::size_t>(p.top_k));
  const auto mass = [&] {
    return std::accumulate(order.begin(), order.end(), 0.0,
                           [&](double s, std::size_t i) { return s + weights[i]; });
  };
  if (p.top_p < 1.0f) order.resize(prefix(order, weights, static_cast<double>(p.top_p) * mass()));
  std::erase_if(order, [&](std::size_t i) { return weights[i] < static_cast<double>(p.min_p); });

  std::sort(order.begin(), order.end());
  const double target = u * mass();
  double sum = 0;
  for (const std::size_t i : order)
    if ((sum += weights[i]) > target) return i;
  return order.back();
}

}  // namespace

void embedding(const EmbeddingParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.ids.dim(0); ++t) {
    const std::int64_t id = p.ids.as<std::int32_t>()[t * p.ids.stride(0)];
    for (std::int64_t i = 0; i < p.table.dim(1); ++i)
      write(p.out, t * p.out.stride(0) + i * p.out.stride(1),
            p.scale * read(p.table, id * p.table.stride(0) + i * p.table.stride(1)));
  }
}

void argmax(const ArgmaxParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.logits.dim(0); ++t) {
    const std::vector<double> logits = row_of(p.logits, t);
    const std::size_t best = argmax_of(logits);
    p.ids.as<std::int32_t>()[t * p.ids.stride(0)] = static_cast<std::int32_t>(best);
    if (p.max.present()) write(p.max, t * p.max.stride(0), logits[best]);
  }
}

void sample(const SampleParams& p, const RunContext&) {
  for (std::int64_t t = 0; t < p.logits.dim(0); ++t)
    p.ids.as<std::int32_t>()[t * p.ids.stride(0)] =
        static_cast<std::int32_t>(sample_of(p, row_of(p.logits, t), uniform_draw(p.seed, p.step, t)));
}

}  // namespace kf::cpu::reference
