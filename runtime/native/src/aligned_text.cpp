#include "aligned_text.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "unicode.h"

namespace mutoscope {
namespace {

// A character of a normalized text and how many characters it takes from the text before: 1 -
// change of them, so that 1 takes none (it came out of the previous one).
struct Change {
    char32_t character;
    int64_t change;
    uint32_t combining_class;
};

// The canonical decomposition with the marks in canonical order.
std::vector<Change> decompose_text(const AlignedText &text) {
    std::vector<Change> changes;
    changes.reserve(text.size());
    size_t first_mark = 0;
    const auto sort_marks = [&] {
        std::stable_sort(changes.begin() + static_cast<std::ptrdiff_t>(first_mark), changes.end(),
                         [](const Change &left, const Change &right) {
                             return left.combining_class < right.combining_class;
                         });
    };
    const auto append = [&](char32_t character, int64_t change) {
        const uint32_t combining_class = get_combining_class(character);
        if (combining_class == 0) sort_marks();
        changes.push_back({character, change, combining_class});
        if (combining_class == 0) first_mark = changes.size();
    };
    for (const AlignedCharacter &from : text) {
        const std::u32string parts = decompose(from.character);
        if (parts.empty()) append(from.character, 0);
        for (size_t i = 0; i < parts.size(); ++i) append(parts[i], i > 0 ? 1 : 0);
    }
    sort_marks();
    return changes;
}

std::vector<Change> compose_changes(const std::vector<Change> &changes) {
    std::vector<Change> composed, marks;
    std::optional<Change> starter;
    const auto flush = [&] {
        if (starter) composed.push_back(*starter);
        composed.insert(composed.end(), marks.begin(), marks.end());
        marks.clear();
    };
    for (const Change &next : changes) {
        if (!starter && next.combining_class != 0) {
            composed.push_back(next);
            continue;
        }
        const bool is_blocked =
            !marks.empty() && marks.back().combining_class >= next.combining_class;
        const char32_t both =
            starter && !is_blocked ? compose(starter->character, next.character) : 0;
        if (both != 0) {
            starter->character = both;
            starter->change += next.change - 1;
        } else if (next.combining_class == 0) {
            flush();
            starter = next;
        } else {
            marks.push_back(next);
        }
    }
    flush();
    return composed;
}

// The printable characters that stand for bytes 0 to 255, as bytes_to_unicode of GPT-2.
std::array<char32_t, 256> make_byte_characters() {
    std::array<char32_t, 256> characters{};
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool is_printable = (byte >= 33 && byte < 127) || (byte >= 161 && byte != 173);
        characters[byte] = is_printable ? byte : next++;
    }
    return characters;
}

enum class Kind { letter, number, space, other };

Kind get_kind(char32_t character) {
    if (is_letter(character)) return Kind::letter;
    if (is_number(character)) return Kind::number;
    return is_space(character) ? Kind::space : Kind::other;
}

bool starts_with(const AlignedText &text, size_t begin, std::u32string_view start) {
    return start.size() <= text.size() - begin &&
           std::equal(start.begin(), start.end(), text.begin() + static_cast<std::ptrdiff_t>(begin),
                      [](char32_t left, const AlignedCharacter &right) {
                          return left == right.character;
                      });
}

// The end of a contraction or special token that begins there; begin if none does.
size_t match_words(const AlignedText &text, size_t begin, bool special_tokens) {
    constexpr std::array<std::u32string_view, 2> kSpecialTokens = {U"<|startoftext|>",
                                                                   U"<|endoftext|>"};
    constexpr std::array<std::u32string_view, 7> kContractions = {U"'s", U"'t",  U"'re", U"'ve",
                                                                  U"'m", U"'ll", U"'d"};
    if (special_tokens) {
        for (std::u32string_view token : kSpecialTokens) {
            if (starts_with(text, begin, token)) return begin + token.size();
        }
    }
    for (std::u32string_view contraction : kContractions) {
        if (starts_with(text, begin, contraction)) return begin + contraction.size();
    }
    return begin;
}

// The end of the run of characters of one kind.
size_t find_run_end(const AlignedText &text, size_t begin) {
    const Kind kind = get_kind(text[begin].character);
    size_t end = begin + 1;
    while (end < text.size() && get_kind(text[end].character) == kind) ++end;
    return end;
}

// The end of the match that begins there; begin if none does.
size_t match_clip(const AlignedText &text, size_t begin, bool special_tokens) {
    const size_t end = match_words(text, begin, special_tokens);
    if (end != begin) return end;
    switch (get_kind(text[begin].character)) {
        case Kind::space:
            return begin;
        case Kind::number:
            return begin + 1;
        default:
            return find_run_end(text, begin);
    }
}

size_t match_gpt2(const AlignedText &text, size_t begin) {
    size_t end = match_words(text, begin, false);
    if (end != begin) return end;
    end = find_run_end(text, begin);
    if (get_kind(text[begin].character) != Kind::space) return end;
    if (text[begin].character == U' ' && end == begin + 1 && end < text.size()) {
        return find_run_end(text, end);
    }
    // \s+(?!\S) leaves the last space of a run to the word after it; a lone one is taken by \s+.
    return end < text.size() && end > begin + 1 ? end - 1 : end;
}

}  // namespace

AlignedText align(const std::u32string &characters) {
    AlignedText text;
    text.reserve(characters.size());
    size_t position = 0;
    for (char32_t character : characters) {
        const size_t begin = position;
        position += count_utf8_bytes(character);
        text.push_back({character, begin, position});
    }
    return text;
}

void normalize_nfc(AlignedText &text) {
    const std::vector<Change> changes = compose_changes(decompose_text(text));
    AlignedText normalized;
    normalized.reserve(changes.size());
    size_t position = 0;
    for (const Change &change : changes) {
        // What was added belongs to the character before it.
        const bool is_added = change.change > 0;
        const AlignedCharacter &from = text[is_added && position > 0 ? position - 1 : position];
        normalized.push_back({change.character, from.begin, from.end});
        if (!is_added) position += static_cast<size_t>(1 - change.change);
    }
    text = std::move(normalized);
}

void collapse_spaces(AlignedText &text) {
    AlignedText collapsed;
    collapsed.reserve(text.size());
    bool was_space = false;
    for (AlignedCharacter character : text) {
        const bool is_white = is_space(character.character);
        if (is_white) character.character = U' ';
        if (is_white && was_space) {
            collapsed.back() = character;
        } else {
            collapsed.push_back(character);
        }
        was_space = is_white;
    }
    text = std::move(collapsed);
}

void lowercase(AlignedText &text) {
    AlignedText lower;
    lower.reserve(text.size());
    for (const AlignedCharacter &from : text) {
        lower.push_back({to_lowercase(from.character), from.begin, from.end});
        if (from.character == 0x130) lower.push_back({0x307, from.begin, from.end});
    }
    text = std::move(lower);
}

void prepend_space(AlignedText &text) {
    if (text.empty() || text.front().character == U' ') return;
    text.insert(text.begin(), {U' ', text.front().begin, text.front().end});
}

void map_bytes(AlignedText &text) {
    const std::array<char32_t, 256> characters = make_byte_characters();
    AlignedText mapped;
    mapped.reserve(text.size());
    std::string bytes;
    for (const AlignedCharacter &from : text) {
        bytes.clear();
        append_utf8(bytes, from.character);
        for (char byte : bytes) {
            mapped.push_back({characters[static_cast<unsigned char>(byte)], from.begin, from.end});
        }
    }
    text = std::move(mapped);
}

size_t count_leading_spaces(const AlignedText &text) {
    constexpr char32_t kMappedSpace = 0x120;
    const auto word = std::find_if(text.begin(), text.end(), [](const AlignedCharacter &from) {
        return from.character != kMappedSpace && !is_space(from.character);
    });
    return static_cast<size_t>(word - text.begin());
}

std::vector<Match> find_matches(const AlignedText &text, Pattern pattern) {
    std::vector<Match> matches;
    size_t begin = 0, rest = 0;  // rest: the end of the last match
    while (begin < text.size()) {
        const size_t end = pattern == Pattern::gpt2
                               ? match_gpt2(text, begin)
                               : match_clip(text, begin, pattern != Pattern::clip);
        if (end == begin) {
            ++begin;
            continue;
        }
        if (rest < begin) matches.push_back({rest, begin, false});
        matches.push_back({begin, end, true});
        begin = rest = end;
    }
    if (rest < begin) matches.push_back({rest, begin, false});
    return matches;
}

}  // namespace mutoscope
