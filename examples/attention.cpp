// A first C++ program: grouped-query attention over three sequences of different lengths, in one call.
//
//   cmake --install build --prefix /usr/local
//   g++ -std=c++20 examples/attention.cpp -lkf ...      or find_package(kf) and link kf::kf
#include <kf/kf.h>

#include <cstdio>

int main() {
  constexpr std::int64_t kHeads = 8, kKvHeads = 2, kHeadDim = 64, kTokens = 100;
  const kf::Tensor q = kf::Tensor::zeros(kf::DType::f32, {kTokens, kHeads, kHeadDim});
  const kf::Tensor k = kf::Tensor::zeros(kf::DType::f32, {kTokens, kKvHeads, kHeadDim});
  const kf::Tensor v = kf::Tensor::zeros(kf::DType::f32, {kTokens, kKvHeads, kHeadDim});
  const kf::Tensor out(kf::DType::f32, {kTokens, kHeads, kHeadDim});
  const kf::Tensor cu_seqlens = kf::Tensor::zeros(kf::DType::i32, {4});
  const int ends[] = {0, 7, 40, 100};  // sequences of 7, 33 and 60 tokens
  for (int i = 0; i < 4; ++i) cu_seqlens.as<int>()[i] = ends[i];
  for (std::int64_t i = 0; i < v.view().numel(); ++i) v.as<float>()[i] = 1.0f;

  const kf::AttentionParams params{.q = q,
                                   .k = k,
                                   .v = v,
                                   .out = out,
                                   .tables = {.cu_seqlens_q = cu_seqlens, .cu_seqlens_k = cu_seqlens},
                                   .causal = true};
  kf::attention(params);
  std::printf("out[99, 7, 63] = %g\n", out.as<float>()[out.view().numel() - 1]);

  // Which kernel served, and why not the others.
  for (const kf::Explained& e : kf::default_dispatcher().explain(params))
    std::printf("%s %-28s %s\n", e.selected ? "->" : "  ", e.kernel.c_str(), e.reason.c_str());
  return 0;
}
