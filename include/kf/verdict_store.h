// What measured fusion found, kept for the next time.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace kf {

// A fusion that was tried: both forms timed, their results compared.
struct Verdict {
  std::string rule, signature, device;  // the key, together with
  std::string version;                  // the library's and of its sources: other kernels are measured anew
  bool keep = false;
  double unfused_ms = 0, fused_ms = 0;
  double unfused_bytes = 0, fused_bytes = 0;  // peak memory of intermediates
  double max_error = 0;                       // largest |fused - unfused| over the largest |unfused|
  std::string reason;
};

// Verdicts on disk (JSON, replaced atomically; a corrupt file is set aside and said so; one that may not be read is
// left alone and said so). Several processes may share the file.
class VerdictStore {
 public:
  explicit VerdictStore(std::string path = {});  // empty: memory only
  static std::string default_path();             // $KF_CACHE_DIR or $XDG_CACHE_HOME/kf or ~/.cache/kf
  std::optional<Verdict> find(const std::string& rule, const std::string& signature,
                              const std::string& device) const;
  void put(const Verdict& verdict);  // overrules an older one of the same key
  std::vector<Verdict> list() const;
  void clear();
  // Adds what was put since the last save to what the file has by then, from whichever process. Throws
  // resource_exhausted when it cannot be read or written; the old file stays.
  void save();

 private:
  std::string path_;
  mutable std::mutex mutex_;
  std::map<std::string, Verdict> verdicts_;
  std::set<std::string> unsaved_;  // keys that were put
  bool cleared_ = false;           // since the last save: what the file has goes
};

}  // namespace kf
