// What a plug-in's functions return, as errors.
#pragma once

#include <string>
#include <utility>

#include <fmt/format.h>

#include "kf/error.h"
#include "kf/kf_c.h"

namespace kf::plugin {

inline bool is_status(kf_status s) { return s >= KF_OK && s <= KF_NOT_IMPLEMENTED; }

inline ErrorCode code_of(kf_status s) {
  switch (s) {
    case KF_INVALID_ARGUMENT:
      return ErrorCode::invalid_argument;
    case KF_RESOURCE_EXHAUSTED:
      return ErrorCode::resource_exhausted;
    case KF_DEADLINE_EXCEEDED:
      return ErrorCode::deadline_exceeded;
    case KF_NOT_IMPLEMENTED:
      return ErrorCode::not_implemented;
    default:
      return ErrorCode::unavailable;
  }
}

// What came of a function of the plug-in's. Exceptions, which it must not let out, are errors like any other.
struct Attempt {
  kf_status status = KF_OK;
  bool threw = false;
  kf_reason reason;
};

// Calls a function that takes a reason. Allocates nothing.
template <class F>
Attempt attempt(F&& function) {
  Attempt a;
  a.reason.text[0] = 0;
  try {
    a.status = std::forward<F>(function)(&a.reason);
  } catch (...) {
    a.threw = true;
    a.status = KF_UNAVAILABLE;
  }
  a.reason.text[sizeof a.reason.text - 1] = 0;
  return a;
}

inline constexpr const char* kTheirMistake = "this is a mistake in the plug-in: tell those who made it";

struct Result {
  kf_status status = KF_OK;
  std::string reason = {};
};

// `what` names the function: "kernel toy::rms_norm: run".
inline Result result_of(const std::string& what, const Attempt& a) {
  if (a.threw)
    return {KF_UNAVAILABLE, fmt::format("{}: expected a status, got an exception; {}", what, kTheirMistake)};
  if (!is_status(a.status))
    return {KF_UNAVAILABLE,
            fmt::format("{}: expected a status from 0 to 5, got {}; {}", what, a.status, kTheirMistake)};
  if (a.status == KF_OK) return {};
  return {a.status,
          fmt::format("{}: {}", what, a.reason.text[0] ? a.reason.text : "failed without a reason")};
}

// Calls the function; throws what it reports.
template <class F>
void must(const std::string& what, F&& function) {
  const Result r = result_of(what, attempt(std::forward<F>(function)));
  if (r.status != KF_OK) throw Error(code_of(r.status), r.reason);
}

}  // namespace kf::plugin
