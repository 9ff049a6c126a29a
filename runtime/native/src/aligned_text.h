// A text under normalization: every character knows which bytes of the prompt it came from.
#ifndef MUTOSCOPE_ALIGNED_TEXT_H
#define MUTOSCOPE_ALIGNED_TEXT_H

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mutoscope {

struct AlignedCharacter {
    char32_t character;
    size_t begin, end;  // the bytes of the prompt that it stands for
};
using AlignedText = std::vector<AlignedCharacter>;

// A part of a text; an added token has its id already.
struct Split {
    AlignedText text;
    std::optional<uint32_t> id;
};

AlignedText align(const std::u32string &characters);

// In place, with the alignments that NormalizedString of `tokenizers` gives.
void normalize_nfc(AlignedText &text);
void collapse_spaces(AlignedText &text);  // each run of white space becomes one " "
void lowercase(AlignedText &text);
void prepend_space(AlignedText &text);  // unless there is one, or no text
// Each byte of the UTF-8 becomes the printable character that stands for it in GPT-2's vocabulary.
void map_bytes(AlignedText &text);

// White space, and the character that map_bytes() makes of " ".
size_t count_leading_spaces(const AlignedText &text);

// What a regex splits a text into: all of it, in order.
struct Match {
    size_t begin, end;  // characters
    bool is_match;      // false for what lies between matches
};
enum class Pattern {
    clip,                      // 's|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
    clip_with_special_tokens,  // <\|startoftext\|>|<\|endoftext\|>| before that
    gpt2,  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
};
std::vector<Match> find_matches(const AlignedText &text, Pattern pattern);

}  // namespace mutoscope

#endif
