// A process that has used threads forks: parent and child both go on, each with threads of its own.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include <gtest/gtest.h>

#include "kf/kf.h"

namespace kf {
namespace {

struct Layer {
  Tensor x = Tensor::zeros(DType::f32, {64, 256}), weight = Tensor::zeros(DType::f32, {256, 256}),
         out = Tensor::zeros(DType::f32, {64, 256});

  Layer() {
    for (int i = 0; i < 64 * 256; ++i) x.as<float>()[i] = 0.01f * static_cast<float>(i % 97 - 48);
    for (int i = 0; i < 256 * 256; ++i) weight.as<float>()[i] = 0.01f * static_cast<float>(i % 89 - 44);
  }
  void run(Dispatcher& d) { d.run(LinearParams{.x = x, .weight = weight, .out = out}); }
};

// What a child made of `body` returned; -1: it did not end by itself (hung until its alarm, or crashed).
template <class Body>
int in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Fork, ThreadsAreStartedAnewOnBothSides) {
  Dispatcher d(backend_by_name("cpu"), {.num_threads = 3});
  Layer layer;
  layer.run(d);
  const Tensor before(DType::f32, {64, 256});
  std::memcpy(before.view().data, layer.out.view().data, before.view().nbytes());
  const auto same = [&] {
    std::memset(layer.out.view().data, 0, before.view().nbytes());
    layer.run(d);
    return std::memcmp(before.view().data, layer.out.view().data, before.view().nbytes()) == 0;
  };
  const auto child = [&] { return same() ? 0 : 1; };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(in_child(child), 0) << "fork " << i;
    EXPECT_TRUE(same()) << "fork " << i;
  }
  // A child that has used its own threads forks in turn.
  EXPECT_EQ(in_child([&] { return same() ? in_child(child) : 2; }), 0);
}

TEST(Fork, QuantizingSurvivesToo) {
  Layer layer;
  const Tensor data(DType::i8, {256, 256}), scales(DType::f32, {256, 1});
  const auto work = [&] {
    quantize(layer.weight, data, {.scales = scales});
    return 0;
  };
  work();
  EXPECT_EQ(in_child(work), 0);
}

}  // namespace
}  // namespace kf
