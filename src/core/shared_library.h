// Libraries that are opened at run time, so that the library loads where they are absent.
#pragma once

#include <string>
#include <vector>

namespace kf {

// Folders in which libraries are looked for before the loader looks where it does: those of $KF_LIBRARY_PATH (separated by
// colons), then those added here, the last added first. For those that are opened after the call.
void add_library_folder(const std::string& folder);

// Open for the rest of the process.
class SharedLibrary {
 public:
  SharedLibrary() = default;
  // The first of the names that can be opened, or why none can.
  explicit SharedLibrary(const std::vector<std::string>& names);
  // Why it cannot be used; empty: it can.
  const std::string& problem() const { return problem_; }
  void* handle() const { return handle_; }
  void* find(const char* symbol) const;  // null: it has none
  // As find(); what is not there becomes the problem.
  template <class Function>
  void require(Function*& function, const char* symbol) {
    function = reinterpret_cast<Function*>(find(symbol));
    if (function == nullptr && problem_.empty()) problem_ = name_ + " has no " + symbol;
  }
  // The file, where the loader says it.
  std::string path() const;

 private:
  std::string name_, problem_;
  void* handle_ = nullptr;
};

}  // namespace kf
