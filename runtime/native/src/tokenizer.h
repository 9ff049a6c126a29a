// Text to token ids, as the `tokenizers` library does it for the CLIP family.
#ifndef MUTOSCOPE_TOKENIZER_H
#define MUTOSCOPE_TOKENIZER_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mutoscope {

struct TokenizerParts;
struct TokenizerRecord;

struct Token {
    int64_t id;
    size_t begin;     // where it begins in the text, in characters; 0 if the tokenizer added it
    bool is_special;  // added by the tokenizer around the text
};

// Reads what CLIP tokenizers consist of: byte-level BPE with its normalizers, pre-tokenizers, added
// tokens and the tokens around a text. Copies share one vocabulary; encode() may be called from any
// thread.
class Tokenizer {
public:
    // json_text: the content of a tokenizer.json. file_name: what messages call it.
    // Raises BundleError for a file that is damaged or needs more than this version can do.
    static Tokenizer parse(std::string_view json_text, const std::string &file_name);

    // The ids of a text in UTF-8, never cut or padded, with the special tokens around them.
    // Raises ParameterError for invalid UTF-8.
    std::vector<Token> encode(std::string_view text) const;

private:
    explicit Tokenizer(std::shared_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

    std::shared_ptr<const TokenizerParts> parts_;
};

// The token ids of a prompt, padded to the bundle's length.
// name: what messages call the prompt: "prompt" or "negative_prompt".
// Raises ParameterError for invalid UTF-8 and for more tokens than the text encoder can take.
std::vector<int64_t> encode_prompt(const Tokenizer &tokenizer, const TokenizerRecord &record,
                                   const std::string &name, std::string_view text);

}  // namespace mutoscope

#endif
