// Uses the installed headers and library alone.
#include <kf/kf.h>

#include <cmath>
#include <cstdio>

int main() {
  const kf::Tensor x(kf::DType::f32, {1, 4}), w(kf::DType::f32, {4}), out(kf::DType::f32, {1, 4});
  for (int i = 0; i < 4; ++i) {
    x.as<float>()[i] = 2.0f;
    w.as<float>()[i] = 3.0f;
  }
  kf::rms_norm({.x = x, .weight = w, .out = out});
  if (std::abs(out.as<float>()[3] - 3.0f) > 1e-5f) return 1;
  std::puts("kf::rms_norm from an installed package: ok");
  return 0;
}
