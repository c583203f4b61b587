#include "core/log.h"

#include <memory>

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace kf {

void log_warning(const std::string& message) {
  // Of our own: spdlog's default logger writes to standard output, and belongs to the program that links us.
  static spdlog::logger logger("kf", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger.warn(message);
}

}  // namespace kf
