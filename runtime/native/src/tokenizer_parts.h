// What a Tokenizer consists of; for tokenizer.cpp and tokenizer_file.cpp.
#ifndef MUTOSCOPE_TOKENIZER_PARTS_H
#define MUTOSCOPE_TOKENIZER_PARTS_H

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "added_tokens.h"
#include "aligned_text.h"
#include "byte_pairs.h"
#include "tokenizer.h"

namespace mutoscope {

using Normalizer = void (*)(AlignedText &text);

// Splits a text further, and then maps its bytes if it is of the type ByteLevel.
struct PreTokenizer {
    bool splits = true;
    Pattern pattern = Pattern::clip;
    bool keeps_matches = true, keeps_rest = true;
    bool prepends_space = false;
    bool maps_bytes = false;
};

struct PostProcessor {
    std::vector<uint32_t> before, after;  // special tokens
    // Whether the spaces that a token begins with are left out of its place in the text.
    bool trims_offsets = false;
    bool prepends_space = false;
};

struct TokenizerParts {
    AddedTokens raw_tokens;         // found in the text as it is
    AddedTokens normalized_tokens;  // found in the normalized text
    std::vector<Normalizer> normalizers;
    std::vector<PreTokenizer> pre_tokenizers;
    BytePairs byte_pairs;
    PostProcessor post_processor;
    std::unordered_map<uint32_t, size_t> leading_spaces;  // only with trims_offsets
};

}  // namespace mutoscope

#endif
