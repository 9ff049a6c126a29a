#include "tokenizer.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "error.h"
#include "manifest.h"
#include "text.h"
#include "tokenizer_parts.h"
#include "unicode.h"

namespace mutoscope {
namespace {

constexpr size_t kQuotedCharacters = 40;

// A token and its place in the text: in bytes, then in characters.
struct Place {
    uint32_t id;
    size_t begin, end;
    size_t leading_spaces;
};

void split_text(const AlignedText &text, const PreTokenizer &pre_tokenizer,
                std::vector<Split> &splits) {
    for (const Match &match : find_matches(text, pre_tokenizer.pattern)) {
        if (match.is_match ? !pre_tokenizer.keeps_matches : !pre_tokenizer.keeps_rest) continue;
        const auto begin = text.begin();
        splits.push_back({AlignedText(begin + static_cast<std::ptrdiff_t>(match.begin),
                                      begin + static_cast<std::ptrdiff_t>(match.end)),
                          std::nullopt});
    }
}

std::vector<Split> pre_tokenize(std::vector<Split> splits, const PreTokenizer &pre_tokenizer) {
    std::vector<Split> found;
    for (Split &split : splits) {
        if (split.id) {
            found.push_back(std::move(split));
            continue;
        }
        if (pre_tokenizer.prepends_space) prepend_space(split.text);
        const size_t first = found.size();
        if (pre_tokenizer.splits) {
            split_text(split.text, pre_tokenizer, found);
        } else {
            found.push_back(std::move(split));
        }
        if (!pre_tokenizer.maps_bytes) continue;
        for (size_t i = first; i < found.size(); ++i) map_bytes(found[i].text);
    }
    return found;
}

// The tokens of a word, with their places in bytes of the whole text.
void append_word(const AlignedText &word, const BytePairs &byte_pairs, std::vector<Place> &places) {
    std::vector<size_t> characters;  // the index of the character that each byte belongs to
    for (size_t i = 0; i < word.size(); ++i) {
        characters.insert(characters.end(), count_utf8_bytes(word[i].character), i);
    }
    size_t begin = 0;
    for (const BytePairs::Piece &piece : byte_pairs.encode(word)) {
        const size_t end = begin + piece.length;
        if (end <= characters.size()) {
            places.push_back(
                {piece.id, word[characters[begin]].begin, word[characters[end - 1]].end, 0});
        } else {
            // The bytes of the suffix have no place: `tokenizers` gives them that in the word.
            places.push_back({piece.id, begin, end, 0});
        }
        begin = end;
    }
}

// From bytes to characters.
void convert_place(const AlignedText &text, Place &place) {
    const size_t size = text.empty() ? 0 : text.back().end;
    const auto find_character = [&text](size_t byte) {
        const auto after = std::upper_bound(text.begin(), text.end(), byte,
                                            [](size_t value, const AlignedCharacter &character) {
                                                return value < character.begin;
                                            });
        return static_cast<size_t>(after - text.begin()) - 1;
    };
    if (place.begin >= size) return;
    const size_t begin = find_character(place.begin);
    if (place.end < size) {
        place.end = find_character(place.end);
    } else {
        place.end = place.end == size ? text.size() : begin + 2;
    }
    place.begin = begin;
}

void trim_places(const PostProcessor &post_processor, std::vector<Place> &places) {
    for (size_t i = 0; i < places.size(); ++i) {
        Place &place = places[i];
        const bool is_first = i == 0 || place.begin == 0;
        const bool is_added =
            is_first && post_processor.prepends_space && place.leading_spaces == 1;
        if (!is_added && place.leading_spaces > 0) {
            place.begin = std::min(place.begin + place.leading_spaces, place.end);
        }
    }
}

// The message for a prompt that does not fit, with the words that would have to go.
std::string describe_too_long(const std::string &name, const std::u32string &prompt,
                              const std::vector<Token> &tokens, int max_length) {
    std::vector<size_t> begins;
    for (const Token &token : tokens) {
        if (!token.is_special) begins.push_back(token.begin);
    }
    const size_t special = tokens.size() - begins.size();
    const size_t length = max_length > 0 ? static_cast<size_t>(max_length) : 0;
    const bool has_cut = length >= special && length - special < begins.size();
    const size_t cut = has_cut ? begins[length - special] : prompt.size();
    std::u32string rest;
    for (size_t i = cut; i < prompt.size(); ++i) {
        if (!is_python_space(prompt[i])) {
            rest.push_back(prompt[i]);
        } else if (!rest.empty() && rest.back() != U' ') {
            rest.push_back(U' ');
        }
        if (rest.size() > kQuotedCharacters + 1) break;
    }
    if (!rest.empty() && rest.back() == U' ') rest.pop_back();
    if (rest.size() > kQuotedCharacters) rest = rest.substr(0, kQuotedCharacters) + U"...";
    std::string quoted;
    for (char32_t character : rest) append_utf8(quoted, character);
    return name + " has " + std::to_string(tokens.size()) + " tokens (" + std::to_string(special) +
           " of them added by the tokenizer); this bundle's text encoder takes at most " +
           std::to_string(max_length) + ": shorten it, what does not fit begins at character " +
           std::to_string(cut + 1) + ": " + quote(quoted);
}

}  // namespace

std::vector<Token> Tokenizer::encode(std::string_view text) const {
    const AlignedText original = align(decode_utf8("text", text));
    std::vector<Split> splits = parts_->raw_tokens.extract({{original, std::nullopt}});
    for (Split &split : splits) {
        if (split.id) continue;
        for (Normalizer normalize : parts_->normalizers) normalize(split.text);
    }
    splits = parts_->normalized_tokens.extract(std::move(splits));
    for (const PreTokenizer &pre_tokenizer : parts_->pre_tokenizers) {
        splits = pre_tokenize(std::move(splits), pre_tokenizer);
    }
    std::vector<Place> places;
    for (const Split &split : splits) {
        if (split.text.empty()) continue;
        if (split.id) {
            places.push_back({*split.id, split.text.front().begin, split.text.back().end,
                              count_leading_spaces(split.text)});
            continue;
        }
        const size_t first = places.size();
        append_word(split.text, parts_->byte_pairs, places);
        for (size_t i = first; i < places.size(); ++i) {
            const auto found = parts_->leading_spaces.find(places[i].id);
            if (found != parts_->leading_spaces.end()) places[i].leading_spaces = found->second;
        }
    }
    for (Place &place : places) convert_place(original, place);
    const PostProcessor &post_processor = parts_->post_processor;
    if (post_processor.trims_offsets) trim_places(post_processor, places);
    std::vector<Token> tokens;
    for (uint32_t id : post_processor.before) tokens.push_back({id, 0, true});
    for (const Place &place : places) tokens.push_back({place.id, place.begin, false});
    for (uint32_t id : post_processor.after) tokens.push_back({id, 0, true});
    return tokens;
}

std::vector<int64_t> encode_prompt(const Tokenizer &tokenizer, const TokenizerRecord &record,
                                   const std::string &name, std::string_view text) {
    const std::u32string prompt = decode_utf8(name, text);
    const std::vector<Token> tokens = tokenizer.encode(text);
    const size_t max_length = record.max_length > 0 ? static_cast<size_t>(record.max_length) : 0;
    if (tokens.size() > max_length) {
        throw ParameterError(describe_too_long(name, prompt, tokens, record.max_length));
    }
    std::vector<int64_t> ids(max_length, record.pad_token_id);
    std::transform(tokens.begin(), tokens.end(), ids.begin(),
                   [](const Token &token) { return token.id; });
    return ids;
}

}  // namespace mutoscope
