// The file of a plug-in.
#pragma once

#include <string>

#include "kf/kf_c.h"

namespace kf::plugin {

// What is loaded stays loaded; `handle` is the same for the same library, by whatever path it came.
struct Library {
  void* handle;
  const kf_plugin* plugin;
};

// Loads the library, asks its ABI version, and opens it. Throws unavailable, with what to do.
Library open_library(const std::string& path);

}  // namespace kf::plugin
