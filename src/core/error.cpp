#include "kf/error.h"

namespace kf {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::resource_exhausted: return "resource_exhausted";
    case ErrorCode::unavailable: return "unavailable";
    case ErrorCode::deadline_exceeded: return "deadline_exceeded";
    case ErrorCode::not_implemented: return "not_implemented";
  }
  return "unknown";
}

void throw_invalid(const std::string& message) { throw Error(ErrorCode::invalid_argument, message); }

}  // namespace kf
