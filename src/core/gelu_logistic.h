// GELU's normal distribution as a logistic function, for results that are kept in bf16:
// Phi(x) = 1 / (1 + 2^-(x P(x^2))), P a polynomial fitted on [-5.6, 5.6] so that the largest relative error of the result,
// 3e-4, is a seventh of half a unit in the last place. Beyond, GELU is x or between -1e-7 and 0. For negative x this does not
// cancel, as 1 + erf would.
#pragma once

namespace kf::gelu_logistic {

inline constexpr float kEnd = 5.6f;  // of the range
// P(s) = kP0 + kP1 s + ... + kP6 s^6
inline constexpr float kP0 = 2.301069021f, kP1 = 1.063464433e-01f, kP2 = -6.681408267e-04f,
                       kP3 = -6.554964057e-05f, kP4 = 3.909517545e-06f, kP5 = -9.192471140e-08f,
                       kP6 = 8.172922894e-10f;

}  // namespace kf::gelu_logistic
