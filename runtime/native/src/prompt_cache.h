// What text encoders made of prompts, kept so that the same prompt is encoded once.
#ifndef MUTOSCOPE_PROMPT_CACHE_H
#define MUTOSCOPE_PROMPT_CACHE_H

#include <list>
#include <string>
#include <utility>

#include "array.h"

namespace mutoscope {

// Outputs of encoders by all of their inputs; the least recently used are dropped.
class PromptCache {
public:
    // A prompt of Stable Diffusion XL takes 0.6 MB, one of Stable Diffusion 1.5 0.2 MB.
    static constexpr size_t kMaxEntries = 64;

    // The outputs that were kept under a key, or null; they may be read until the next call.
    const NamedArrays *find(const std::string &key);
    // Keep copies of outputs: their memory may be a part of more, which is the session's.
    void add(const std::string &key, const NamedArrays &outputs);

private:
    std::list<std::pair<std::string, NamedArrays>> entries_;  // the last used first
};

// What the outputs of a component are kept by: the digest of all that it is fed.
std::string make_prompt_key(const std::string &component, const NamedArrays &feeds);

}  // namespace mutoscope

#endif
