// Errors: every failure of the library is a kf::Error with one of five codes, a sentence that says what was
// expected and what came, and the context as key-value pairs.
#pragma once

#include <map>
#include <stdexcept>
#include <string>

namespace kf {

enum class ErrorCode {
  invalid_argument,    // the caller's input is wrong: shape, dtype, layout, index, file
  resource_exhausted,  // memory, disk, or a cache's capacity
  unavailable,         // the device, library or backend is not here
  deadline_exceeded,   // a time budget ran out
  not_implemented,     // nothing in the configured kernel family serves the call
};

const char* error_code_name(ErrorCode code);

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::map<std::string, std::string> context = {})
      : std::runtime_error(message), code_(code), context_(std::move(context)) {}
  ErrorCode code() const { return code_; }
  const std::map<std::string, std::string>& context() const { return context_; }
  // Whether the same call may succeed later (resources or a device may come back).
  bool is_retryable() const {
    return code_ == ErrorCode::resource_exhausted || code_ == ErrorCode::unavailable ||
           code_ == ErrorCode::deadline_exceeded;
  }

 private:
  ErrorCode code_;
  std::map<std::string, std::string> context_;
};

[[noreturn]] void throw_invalid(const std::string& message);

}  // namespace kf
