// A plug-in's table as a Backend.
#pragma once

#include <string>

#include "kf/backend.h"
#include "kf/kf_c.h"

namespace kf::plugin {

// Throws unavailable unless the table can be used: whatever a function of it does later is an error of the call that asked.
// `path` is for messages.
Backend make_backend(const kf_plugin& plugin, const std::string& path);

}  // namespace kf::plugin
