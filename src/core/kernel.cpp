#include "kf/kernel.h"

namespace kf {

std::string family_names(unsigned families) {
  static constexpr std::pair<Family, const char*> kNames[] = {
      {kCustom, "custom"}, {kFused, "fused"}, {kLibrary, "library"}, {kVanilla, "vanilla"}, {kReference, "reference"}};
  std::string s;
  for (auto [bit, name] : kNames) {
    if (!(families & bit)) continue;
    if (!s.empty()) s += '|';
    s += name;
  }
  return s;
}

std::size_t PackCache::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

std::shared_ptr<void> PackCache::get_erased(const TensorView& weight, const std::string& format,
                                            const std::function<std::shared_ptr<void>(std::size_t*)>& make) {
  std::string key = format;
  key.push_back('\0');
  auto put = [&key](const auto& value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); };
  put(weight.data);
  put(weight.dtype);
  put(weight.device.type);
  put(weight.device.index);
  for (int i = 0; i < weight.rank; ++i) {
    put(weight.shape[i]);
    put(weight.strides[i]);
  }
  std::lock_guard lock(mutex_);
  auto it = packs_.find(key);
  if (it == packs_.end()) {
    std::size_t bytes = 0;
    it = packs_.emplace(std::move(key), make(&bytes)).first;
    bytes_ += bytes;
  }
  return it->second;
}

}  // namespace kf
