#include "unicode.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "error.h"
#include "text.h"
#include "unicode_tables.h"

namespace mutoscope {
namespace {

// Hangul syllables are composed by arithmetic (Unicode, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28;
constexpr char32_t kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;

// A table of where membership changes: odd counts of changes up to a character mean that it is in.
template <size_t N>
bool is_member(const uint32_t (&changes)[N], char32_t character) {
    return (std::upper_bound(changes, changes + N, character) - changes) % 2 == 1;
}

// The range of a sorted table that holds the character, or nullptr.
template <typename Range, size_t N>
const Range *find_range(const Range (&ranges)[N], char32_t character) {
    const Range *after =
        std::upper_bound(ranges, ranges + N, character,
                         [](char32_t value, const Range &range) { return value < range.first; });
    return after != ranges && character <= std::prev(after)->last ? std::prev(after) : nullptr;
}

// The entry of a table sorted by composed characters, or nullptr.
template <typename Entry, size_t N>
const Entry *find_entry(const Entry (&entries)[N], char32_t composed) {
    const Entry *found =
        std::lower_bound(entries, entries + N, composed,
                         [](const Entry &entry, char32_t value) { return entry.composed < value; });
    return found != entries + N && found->composed == composed ? found : nullptr;
}

bool decode_character(std::string_view text, size_t &position, char32_t &character) {
    const size_t length = find_sequence(text, position);
    if (length == 0) return false;
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[position + i]); };
    character = length == 1 ? byte(0) : byte(0) & (0x7Fu >> length);
    for (size_t i = 1; i < length; ++i) character = (character << 6) | (byte(i) & 0x3Fu);
    position += length;
    return true;
}

}  // namespace

std::u32string decode_utf8(const std::string &name, std::string_view text) {
    std::u32string characters;
    characters.reserve(text.size());
    size_t position = 0;
    while (position < text.size()) {
        const size_t begin = position;
        char32_t character = 0;
        if (!decode_character(text, position, character)) {
            throw ParameterError(name + " is not valid UTF-8 at byte " + std::to_string(begin) +
                                 ": text is UTF-8 without surrogates; convert it");
        }
        characters.push_back(character);
    }
    return characters;
}

void append_utf8(std::string &text, char32_t character) {
    const auto append = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (character < 0x80) {
        append(character);
        return;
    }
    if (character < 0x800) {
        append(0xC0 | character >> 6);
    } else {
        if (character < 0x10000) {
            append(0xE0 | character >> 12);
        } else {
            append(0xF0 | character >> 18);
            append(0x80 | (character >> 12 & 0x3F));
        }
        append(0x80 | (character >> 6 & 0x3F));
    }
    append(0x80 | (character & 0x3F));
}

size_t count_utf8_bytes(char32_t character) {
    if (character < 0x80) return 1;
    if (character < 0x800) return 2;
    return character < 0x10000 ? 3 : 4;
}

bool is_letter(char32_t character) { return is_member(kLetters, character); }

bool is_number(char32_t character) { return is_member(kNumbers, character); }

bool is_word(char32_t character) { return is_member(kWordCharacters, character); }

bool is_space(char32_t character) {
    return (character >= 0x09 && character <= 0x0D) || character == 0x20 || character == 0x85 ||
           character == 0xA0 || character == 0x1680 ||
           (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
           character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

bool is_python_space(char32_t character) {
    return is_space(character) || (character >= 0x1C && character <= 0x1F);
}

char32_t to_lowercase(char32_t character) {
    if (character == 0x130) return U'i';
    const LowercaseRange *range = find_range(kLowercase, character);
    if (!range || (character - range->first) % static_cast<uint32_t>(range->step) != 0) {
        return character;
    }
    return static_cast<char32_t>(static_cast<int32_t>(character) + range->delta);
}

uint32_t get_combining_class(char32_t character) {
    const MarkRange *range = find_range(kMarks, character);
    return range ? range->combining_class : 0;
}

std::u32string decompose(char32_t character) {
    if (character >= kSyllables && character < kSyllables + kSyllableCount) {
        const char32_t index = character - kSyllables;
        std::u32string parts = {kLeading + index / (kVowelCount * kTrailingCount),
                                kVowels + index / kTrailingCount % kVowelCount};
        if (index % kTrailingCount != 0) parts.push_back(kTrailing + index % kTrailingCount);
        return parts;
    }
    if (const Composition *parts = find_entry(kCompositions, character)) {
        std::u32string all = decompose(parts->first);
        if (all.empty()) all.push_back(parts->first);
        all.push_back(parts->second);
        return all;
    }
    const Decomposition *found = find_entry(kDecompositions, character);
    if (!found) return {};
    const uint32_t *parts = kDecomposed + found->offset;
    return std::u32string(parts, parts + found->length);
}

char32_t compose(char32_t first, char32_t second) {
    if (first >= kLeading && first < kLeading + kLeadingCount && second >= kVowels &&
        second < kVowels + kVowelCount) {
        return kSyllables +
               ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
    }
    if (first >= kSyllables && first < kSyllables + kSyllableCount &&
        (first - kSyllables) % kTrailingCount == 0 && second > kTrailing &&
        second < kTrailing + kTrailingCount) {
        return first + (second - kTrailing);
    }
    const auto found = std::lower_bound(
        std::begin(kCompositionsByParts), std::end(kCompositionsByParts), first,
        [second](uint16_t index, char32_t value) {
            const Composition &entry = kCompositions[index];
            return entry.first != value ? entry.first < value : entry.second < second;
        });
    if (found == std::end(kCompositionsByParts)) return 0;
    const Composition &entry = kCompositions[*found];
    return entry.first == first && entry.second == second ? entry.composed : 0;
}

}  // namespace mutoscope
