// Backends in shared libraries, loaded at run time. What such a library gives is said in kf/kf_c.h.
#pragma once

#include <string>
#include <vector>

#include "kf/backend.h"

namespace kf {

// The backend of the plug-in in this file, which from now on is one of all_backends(): by its name, and for the tensors of its
// device type where no backend before it has that type. Loading a file again gives the same. It stays until the process
// ends. Throws unavailable, with what to do: no such file, not a library of this machine, a function that it lacks, another
// ABI version, a table that does not fit, a name that another backend has.
const Backend& load_plugin(const std::string& path);

// A file that was loaded, or was to be.
struct PluginReport {
  std::string path;
  std::string backend;  // its name; empty: it could not be loaded
  std::string version;  // the plug-in's own
  std::string error;    // why it could not be loaded
};

// Those that KF_PLUGINS names (paths, colons between them, loaded when backends are first asked for; one that fails is
// reported here and logged, and the others go on) and those that load_plugin() was called with.
std::vector<PluginReport> plugin_reports();

}  // namespace kf
