// Every filter keeps a prefix of the tokens in descending order, so a filter is known by the last token it
// keeps, and that is found without sorting: a histogram over the distance from the largest logit says in
// which bucket it lies, and only that bucket is sorted. The draw then walks the kept tokens in the order of
// their ids.
//
// Compiled without contraction to fused multiply-adds: with plain IEEE operations in a fixed order the draw
// is the same on every machine.

#include "backends/cpu/sampling/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "backends/cpu/parallel.h"
#include "backends/cpu/sampling/argmax_row.h"
#include "backends/cpu/simd/convert_row.h"
#include "core/philox.h"
#include "core/sample_weight.h"

namespace kf::cpu {
namespace {

// The tokens still in the race, ascending by id.
struct Candidates {
  std::int32_t* id;
  float* logit;
  float*
      weight;  // what the probability is proportional to: e^((logit - largest) / temperature); set by weigh()
  std::int64_t count;
  float largest, temperature;

  // From the largest logit: 0 and up.
  float distance(std::int64_t i) const { return (largest - logit[i]) / temperature; }
};

void weigh(Candidates& c) {
  for (std::int64_t i = 0; i < c.count; ++i) c.weight[i] = exp_nonpositive(-c.distance(i));
}

// Buckets of equal width over the distances that leave a weight above zero.
constexpr int kBuckets = 1536;
constexpr float kBucketsPerUnit = 17.0f;
std::size_t bucket_of(float distance) {
  return static_cast<std::size_t>(std::min(distance * kBucketsPerUnit, static_cast<float>(kBuckets - 1)));
}

// Drops what `keep(position)` refuses; order stays. Weights are to be set again.
template <class Keep>
void filter(Candidates& c, const Keep& keep) {
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < c.count; ++i) {
    if (!keep(i)) continue;
    c.id[kept] = c.id[i];
    c.logit[kept++] = c.logit[i];
  }
  c.count = kept;
}

// Keeps the shortest prefix, in descending order and ascending by id among equals, whose measure adds up to
// `target`; measure(position) >= 0. `scratch` has room for all candidates' positions.
template <class Measure>
void keep_prefix(Candidates& c, double target, const Measure& measure, std::int32_t* scratch) {
  std::array<double, kBuckets> sums{};
  for (std::int64_t i = 0; i < c.count; ++i) sums[bucket_of(c.distance(i))] += measure(i);
  std::size_t bucket = 0;
  double sum = 0;
  while (bucket < kBuckets && sum + sums[bucket] < target) sum += sums[bucket++];
  if (bucket == kBuckets) return;  // all of them together fall short by rounding

  std::int32_t* end = scratch;
  for (std::int64_t i = 0; i < c.count; ++i)
    if (bucket_of(c.distance(i)) == bucket) *end++ = static_cast<std::int32_t>(i);
  // Positions ascend with ids, so they break ties.
  std::sort(scratch, end, [&](std::int32_t a, std::int32_t b) {
    return c.logit[a] != c.logit[b] ? c.logit[a] > c.logit[b] : a < b;
  });
  std::int32_t last = scratch[0];
  for (const std::int32_t* p = scratch; p != end && sum < target; ++p) {
    last = *p;
    sum += measure(last);
  }
  const float last_logit = c.logit[last];
  filter(c,
         [&](std::int64_t i) { return c.logit[i] > last_logit || (c.logit[i] == last_logit && i <= last); });
}

// In four partial sums, added in one order everywhere.
double sum_weights(const float* weight, std::int64_t n) {
  double s[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) s[j] += weight[i + j];
  for (; i < n; ++i) s[0] += weight[i];
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// The candidate under `u` of the cumulative distribution: found by blocks, then within one.
std::int32_t draw(const Candidates& c, double u) {
  constexpr std::int64_t kBlock = 1024;
  const auto block_sum = [&](std::int64_t begin) {
    return sum_weights(c.weight + begin, std::min(kBlock, c.count - begin));
  };
  double total = 0;
  for (std::int64_t begin = 0; begin < c.count; begin += kBlock) total += block_sum(begin);
  const double target = u * total;
  double sum = 0;
  std::int64_t begin = 0;
  for (; begin + kBlock < c.count; begin += kBlock) {
    const double next = sum + block_sum(begin);
    if (next > target) break;
    sum = next;
  }
  std::int32_t last = 0;  // in case rounding leaves the target beyond the block
  for (std::int64_t i = begin; i < std::min(begin + kBlock, c.count); ++i) {
    sum += c.weight[i];
    if (c.weight[i] > 0) last = c.id[i];
    if (sum > target) break;
  }
  return last;
}

// Arrays of a row's length that one thread needs.
constexpr std::int64_t kArrays = 4;
std::int64_t array_length(const TensorView& logits) { return (logits.dim(1) + 15) / 16 * 16; }

std::int32_t sample_row(const SampleParams& p, std::int64_t row, float* workspace) {
  const std::int64_t vocab = p.logits.dim(1), length = array_length(p.logits);
  const void* logits = p.logits.at(row * p.logits.stride(0));
  const Largest largest = argmax_row(p.logits.dtype, logits, vocab);
  // Greedy; or nothing finite to weigh the others against.
  if (p.temperature == 0.0f || !std::isfinite(largest.value)) return largest.index;

  auto* ids = reinterpret_cast<std::int32_t*>(workspace);
  auto* scratch = reinterpret_cast<std::int32_t*>(workspace + length);
  Candidates c{ids, workspace + 2 * length, workspace + 3 * length, vocab, largest.value, p.temperature};
  std::iota(c.id, c.id + vocab, 0);
  convert_row(p.logits.dtype, logits, DType::f32, c.logit, vocab);
  if (p.top_k > 0 && p.top_k < vocab) {
    const auto one = [](std::int64_t) { return 1.0; };
    keep_prefix(c, static_cast<double>(p.top_k), one, scratch);
  }
  weigh(c);
  if (p.top_p < 1.0f) {
    const auto weight = [&](std::int64_t i) { return static_cast<double>(c.weight[i]); };
    keep_prefix(c, p.top_p * sum_weights(c.weight, c.count), weight, scratch);
    weigh(c);
  }
  if (p.min_p > 0.0f) {
    filter(c, [&](std::int64_t i) { return c.weight[i] >= p.min_p; });
    weigh(c);
  }
  return draw(c, uniform_draw(p.seed, p.step, row));
}

}  // namespace

std::size_t sample_workspace(const SampleParams& p, const PlanContext& ctx) {
  return static_cast<std::size_t>(kArrays * array_length(p.logits)) * sizeof(float) *
         static_cast<std::size_t>(ctx.num_threads);
}

void sample_run(const SampleParams& p, const RunContext& ctx) {
  const std::int64_t vocab = p.logits.dim(1);
  parallel_ranges(
      ctx.num_threads, p.logits.dim(0), vocab, [&](std::int64_t begin, std::int64_t end, int thread) {
        float* workspace = static_cast<float*>(ctx.workspace) + thread * kArrays * array_length(p.logits);
        for (std::int64_t row = begin; row < end; ++row)
          p.ids.as<std::int32_t>()[row * p.ids.stride(0)] = sample_row(p, row, workspace);
      });
}

}  // namespace kf::cpu
