#include "kf/kernel.h"

#include "kf/families.h"

namespace kf {

std::string family_names(unsigned families) {
  static constexpr std::pair<unsigned, const char*> kNames[] = {
      {kCustom, "custom"}, {kTriton, "triton"},   {kFlash3, "flash3"},   {kXformers, "xformers"},
      {kFused, "fused"},   {kLibrary, "library"}, {kVanilla, "vanilla"}, {kReference, "reference"}};
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

std::shared_ptr<void> PackCache::get_erased(std::initializer_list<const TensorView*> operands,
                                            const std::string& format,
                                            const std::function<std::shared_ptr<void>(std::size_t*)>& make) {
  std::string key = format;
  key.push_back('\0');
  auto put = [&key](const auto& value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const TensorView* t : operands) {
    put(t->rank);  // an absent operand is told from one that is there
    if (!t->present()) continue;
    put(t->data);
    put(t->dtype);
    put(t->device.type);
    put(t->device.index);
    for (int i = 0; i < t->rank; ++i) {
      put(t->shape[i]);
      put(t->strides[i]);
    }
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
