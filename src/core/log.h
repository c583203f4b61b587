// What the library has to say beside its results: to standard error, so that a program's output stays its own.
#pragma once

#include <string>

namespace kf {

void log_warning(const std::string& message);

}  // namespace kf
