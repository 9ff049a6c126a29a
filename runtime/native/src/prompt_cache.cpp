#include "prompt_cache.h"

#include <algorithm>

#include "sha256.h"
#include "text.h"

namespace mutoscope {

const NamedArrays *PromptCache::find(const std::string &key) {
    const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const auto &known) { return known.first == key; });
    if (entry == entries_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, entry);
    return &entry->second;
}

void PromptCache::add(const std::string &key, const NamedArrays &outputs) {
    NamedArrays copies;
    for (const auto &[name, array] : outputs) {
        copies.emplace_back(name, Array::copy_from(array.dtype(), array.shape(), array.data()));
    }
    entries_.emplace_front(key, std::move(copies));
    if (entries_.size() > kMaxEntries) entries_.pop_back();
}

std::string make_prompt_key(const std::string &component, const NamedArrays &feeds) {
    Sha256 digest;
    const auto update = [&digest](const std::string &text) {
        digest.update(text.data(), text.size() + 1);  // with the zero byte that ends it
    };
    update(component);
    for (const auto &[name, array] : feeds) {
        update(name);
        update(get_dtype_name(array.dtype()) + format_shape(array.shape()));
        digest.update(array.data(), array.bytes());
    }
    return digest.finish();
}

}  // namespace mutoscope
