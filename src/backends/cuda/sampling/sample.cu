// A block a row. A token's key is its logit's order above its id, ids turned round: what every filter keeps is all keys from
// some bound on, and the bound is found digit by digit, by sums over the keys of each value of a digit. The token under the
// draw is found alike, in the order of ids.
//
// Weights are the CPU's, bit for bit, and are added as integers, so that no sum depends on its order: compiled without
// contraction to fused multiply-adds.

#include "backends/cuda/device/largest.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rows.cuh"
#include "backends/cuda/sampling/sampling.h"
#include "backends/cuda/supports.h"
#include "core/philox.h"
#include "core/sample_weight.h"

namespace kf::cuda {
namespace {

struct SampleArgs {
  const void* logits;
  std::int32_t* ids;
  std::int64_t logits_stride, ids_stride;
  int vocab, id_bits;
  float temperature, top_p, min_p;
  std::int64_t top_k, seed, step;
};

constexpr int kThreads = 1024, kWarps = kThreads / kWarp, kDigitBits = 11, kDigits = 1 << kDigitBits,
              kListed = 2048;
static_assert(kDigits == 2 * kThreads);

struct Shared {
  std::uint32_t low[kDigits], high[kDigits];  // a sum a digit, in two halves
  std::uint64_t of_warp[kWarps];
  std::uint64_t list[kListed];
  int listed;
  std::uint64_t digit, before, there;
  std::uint64_t largest;

  __device__ void add(std::uint32_t digit, std::uint64_t v) {
    const auto lower = static_cast<std::uint32_t>(v);
    const std::uint32_t old = atomicAdd(&low[digit], lower);
    const std::uint32_t upper = static_cast<std::uint32_t>(v >> 32) + (old + lower < old);
    if (upper != 0) atomicAdd(&high[digit], upper);
  }
  __device__ std::uint64_t sum(int digit) const { return std::uint64_t{high[digit]} << 32 | low[digit]; }
};

// The sum of this thread's value and those of the threads before it; of all in `total`.
__device__ std::uint64_t scan(Shared& s, std::uint64_t v, std::uint64_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto over_lanes = [&](std::uint64_t v) {
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const std::uint64_t other = shuffle_up(v, distance);
      if (lane >= distance) v += other;
    }
    return v;
  };
  v = over_lanes(v);
  if (lane == kWarp - 1) s.of_warp[warp] = v;
  __syncthreads();
  if (warp == 0) {
    const std::uint64_t end = over_lanes(lane < kWarps ? s.of_warp[lane] : 0);
    if (lane < kWarps) s.of_warp[lane] = end;
  }
  __syncthreads();
  *total = s.of_warp[kWarps - 1];
  return v + (warp > 0 ? s.of_warp[warp - 1] : 0);
}

// The keys, largest first, up to where their measures add up to a target: a bound that they are at or above. for_each(f)
// calls f(key, measure_of) for this thread's; target_of(total) is 1 to total. The bound is the last of those keys; without
// `exact` it may be lower where that keeps the same, and only the upper digits are looked at where `digits` is less than all.
template <class ForEach, class Target>
__device__ std::uint64_t bound_of(Shared& s, int key_bits, int digits, bool exact, const ForEach& for_each,
                                  const Target& target_of) {
  std::uint64_t bound = 0, target = 0;
  int left = key_bits;
  for (int round = 0; round < digits && left > 0; ++round) {
    const int above = left, width = min(kDigitBits, left);
    left -= width;
    __syncthreads();  // what the round before has left is read
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) s.low[i] = s.high[i] = 0;
    __syncthreads();
    // Neighbours of one digit are added together first.
    std::uint32_t digit = 0;
    std::uint64_t sum = 0;
    for_each([&](std::uint64_t key, const auto& measure_of) {
      if (key >> above != bound >> above) return;
      const std::uint64_t measure = measure_of();
      if (measure == 0) return;
      const std::uint32_t d = static_cast<std::uint32_t>(key >> left) & ((1u << width) - 1);
      if (d != digit && sum != 0) {
        s.add(digit, sum);
        sum = 0;
      }
      digit = d;
      sum += measure;
    });
    if (sum != 0) s.add(digit, sum);
    __syncthreads();
    // A thread has two digits, the larger first.
    const int mine = kDigits - 1 - 2 * static_cast<int>(threadIdx.x);
    const std::uint64_t larger = s.sum(mine), lesser = s.sum(mine - 1);
    std::uint64_t total;
    const std::uint64_t end = scan(s, larger + lesser, &total), begin = end - larger - lesser;
    if (round == 0) target = target_of(total);
    if (begin < target && target <= end) {
      const bool first = target <= begin + larger;
      s.digit = static_cast<std::uint64_t>(first ? mine : mine - 1);
      s.before = first ? begin : begin + larger;
      s.there = first ? larger : lesser;
    }
    __syncthreads();
    bound |= s.digit << left;
    target -= s.before;
    if (!exact && target == s.there) break;
  }
  return bound;
}

// What is kept after top_k, with what keeps of it and the draw. for_each(f) calls f(key) for this thread's keys of a set that
// holds all kept ones.
template <class ForEach>
__device__ void draw(Shared& s, const SampleArgs& a, std::int64_t row, float largest, std::uint64_t bound,
                     const ForEach& for_each) {
  const std::uint64_t ids = (std::uint64_t{1} << a.id_bits) - 1;
  const int key_bits = 32 + a.id_bits;
  const float unit = exp2f(static_cast<float>(62 - a.id_bits));  // of the sums: 2^62 for a row of ones
  const auto weight_of = [&](std::uint64_t key) {
    const float distance = (largest - logit_of(static_cast<std::uint32_t>(key >> a.id_bits))) / a.temperature;
    return exp_nonpositive(-distance);
  };
  if (a.top_p < 1.0f) {
    const std::uint64_t kept = bound;
    bound = bound_of(
        s, key_bits, key_bits, false,
        [&](const auto& f) {
          for_each([&](std::uint64_t key) {
            if (key >= kept) f(key, [&] { return std::uint64_t{__float2ull_rn(weight_of(key) * unit)}; });
          });
        },
        [&](std::uint64_t total) {
          const double target = ceil(static_cast<double>(a.top_p) * static_cast<double>(total));
          return min(total, static_cast<std::uint64_t>(target));
        });
    bound = max(bound, kept);
  }
  const double u = uniform_draw(a.seed, a.step, row);
  const std::uint64_t last = bound_of(
      s, a.id_bits, a.id_bits, true,
      [&](const auto& f) {
        for_each([&](std::uint64_t key) {
          if (key < bound) return;
          f(key & ids, [&] {
            const float weight = weight_of(key);
            return weight >= a.min_p ? std::uint64_t{__float2ull_rn(weight * unit)} : 0;
          });
        });
      },
      [&](std::uint64_t total) {  // the first whose sum is beyond u of all
        const double target = floor(u * static_cast<double>(total)) + 1;
        return min(total, static_cast<std::uint64_t>(target));
      });
  if (threadIdx.x == 0) a.ids[row * a.ids_stride] = static_cast<std::int32_t>(ids - last);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs a) {
  __shared__ Shared s;
  wait_for_predecessor();
  const std::int64_t row = blockIdx.x;
  const T* const x = static_cast<const T*>(a.logits) + row * a.logits_stride;
  const std::uint64_t ids = (std::uint64_t{1} << a.id_bits) - 1;
  const auto for_each = [&](const auto& f) {
    for (int i = static_cast<int>(threadIdx.x) * W; i < a.vocab; i += kThreads * W) {
      float v[W];
      load(x + i, v);
#pragma unroll
      for (int k = 0; k < W; ++k)
        f(std::uint64_t{order_of(v[k])} << a.id_bits | (ids - static_cast<std::uint64_t>(i + k)));
    }
  };
  std::uint64_t mine = 0;
  for_each([&](std::uint64_t key) { mine = max(mine, key); });
  const std::uint64_t best = block_max(mine);
  if (threadIdx.x == 0) {
    s.largest = best;
    s.listed = 0;
  }
  __syncthreads();
  const float largest = logit_of(static_cast<std::uint32_t>(s.largest >> a.id_bits));
  // Greedy; or nothing finite to weigh the others against.
  if (a.temperature == 0.0f || !isfinite(largest)) {
    if (threadIdx.x == 0) a.ids[row * a.ids_stride] = static_cast<std::int32_t>(ids - (s.largest & ids));
    return;
  }
  if (a.top_k == 0 || a.top_k >= a.vocab) return draw(s, a, row, largest, 0, for_each);

  const int key_bits = 32 + a.id_bits;
  const auto bound_of_k = [&](int digits, std::uint64_t least, const auto& each) {
    return bound_of(
        s, key_bits, digits, false,
        [&](const auto& f) {
          each([&](std::uint64_t key) {
            if (key >= least) f(key, [] { return std::uint64_t{1}; });
          });
        },
        [&](std::uint64_t total) { return min(total, static_cast<std::uint64_t>(a.top_k)); });
  };
  // So many threads have a key at or above the k-th largest of their largest ones that the k largest of all are there too:
  // a bound that leaves few keys, which are listed.
  std::uint64_t least = 0;
  if (a.top_k <= kThreads / 2 && a.vocab >= kThreads * W) {
    least = bound_of_k(2, 1, [&](const auto& f) { f(mine); });
    for_each([&](std::uint64_t key) {
      if (key < least) return;
      const int at = atomicAdd(&s.listed, 1);
      if (at < kListed) s.list[at] = key;
    });
    __syncthreads();
    if (s.listed <= kListed) {
      const auto listed = [&](const auto& f) {
        for (int i = static_cast<int>(threadIdx.x); i < s.listed; i += kThreads) f(s.list[i]);
      };
      return draw(s, a, row, largest, bound_of_k(key_bits, least, listed), listed);
    }
  }
  draw(s, a, row, largest, bound_of_k(key_bits, least, for_each), for_each);
}

}  // namespace

Support sample_supports(const SampleParams& p, const PlanContext&) { return rows_fit(p.logits); }

void sample_run(const SampleParams& p, const RunContext& ctx) {
  if (p.ids.numel() == 0) return;
  int id_bits = 1;
  while (std::int64_t{1} << id_bits < p.logits.dim(1)) ++id_bits;
  const SampleArgs a{p.logits.data,
                     p.ids.as<std::int32_t>(),
                     p.logits.stride(0),
                     p.ids.stride(0),
                     static_cast<int>(p.logits.dim(1)),
                     id_bits,
                     p.temperature,
                     p.top_p,
                     p.min_p,
                     p.top_k,
                     p.seed,
                     p.step};
  const dim3 grid(static_cast<unsigned>(p.ids.dim(0)));
  with_vectors(p.logits.dtype, {&p.logits},
               [&]<class T, int W>(std::type_identity<T>, std::integral_constant<int, W>) {
                 constexpr int kWidth = kWarp == 32 ? W : std::min(W, 4);  // registers
                 Launch(p.ids, ctx)(sample_kernel<T, kWidth>, grid, dim3(kThreads), 0, a);
               });
}

}  // namespace kf::cuda
