// What the library keeps on disk: where, and how a file is replaced so that whoever reads it sees the old one or the new
// one, never a part.
#pragma once

#include <string>

namespace kf {

// $KF_CACHE_DIR or $XDG_CACHE_HOME/kf or ~/.cache/kf; empty: none of them is set.
std::string cache_folder();

// Writes a file of a new name beside `path`; returns the name. Throws std::system_error.
std::string write_beside(const std::string& path, const std::string& bytes);
// Writes beside `path` and renames it over. Throws std::system_error; the old file stays.
void replace_file(const std::string& path, const std::string& bytes);

}  // namespace kf
