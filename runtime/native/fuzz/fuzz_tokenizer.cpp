// libFuzzer target of the tokenizer: an input that begins with { is a tokenizer.json, with which
// fixed texts are encoded; anything else is a text for a fixed tokenizer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "error.h"
#include "manifest.h"
#include "tokenizer.h"

namespace {

using mutoscope::Tokenizer;

// Contractions, runs of white space, marks out of order, Hangul, emoji, special tokens, a zero
// byte.
constexpr std::string_view kTexts[] = {
    "it's A red\t  circle, 100% <|endoftext|>",
    "\u0130\u03a3 e\u0301\u0327 \u1112\u1161\u11ab \U0001f468\u200d\U0001f469 \u00a0\u3000",
    {"ab\0aab <s>a b</s> ", 18},
    "",
};

constexpr std::string_view kTokenizer = R"({
    "added_tokens": [
        {"id": 6, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": true,
         "normalized": false, "special": true},
        {"id": 9, "content": "E\u0301", "single_word": true, "lstrip": false, "rstrip": true,
         "normalized": true, "special": false}],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
        {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
            "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}]},
    "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 6], "sep": ["</s>", 7],
                       "trim_offsets": true, "add_prefix_space": true},
    "model": {"unk_token": "?", "end_of_word_suffix": "</w>", "fuse_unk": true,
        "vocab": {"a": 0, "b": 1, "ab": 2, "b</w>": 3, "ab</w>": 4, "?": 5, "<s>": 6, "</s>": 7,
                  "aa": 8},
        "merges": ["a b</w>", "a b", "a a"]}})";

void encode(const Tokenizer &tokenizer, std::string_view text) {
    const mutoscope::TokenizerRecord record = {"tokenizer.json", 8, 0};
    try {
        if (encode_prompt(tokenizer, record, "prompt", text).size() != 8) std::abort();
    } catch (const mutoscope::Error &error) {
        if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const Tokenizer fixed = Tokenizer::parse(kTokenizer, "tokenizer.json");
    const std::string_view input(reinterpret_cast<const char *>(data), size);
    if (size == 0 || input.front() != '{') {
        encode(fixed, input);
        return 0;
    }
    try {
        const Tokenizer tokenizer = Tokenizer::parse(input, "tokenizer.json");
        for (std::string_view text : kTexts) encode(tokenizer, text);
    } catch (const mutoscope::Error &error) {
        if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
    }
    return 0;
}
