#include "added_tokens.h"

#include <algorithm>
#include <utility>

#include "unicode.h"

namespace mutoscope {
namespace {

AlignedText slice(const AlignedText &text, size_t begin, size_t end) {
    return AlignedText(text.begin() + static_cast<std::ptrdiff_t>(begin),
                       text.begin() + static_cast<std::ptrdiff_t>(end));
}

bool is_within_word(const AlignedText &text, size_t begin, size_t end) {
    return (begin > 0 && is_word(text[begin - 1].character)) ||
           (end < text.size() && is_word(text[end].character));
}

}  // namespace

bool AddedTokens::add(AddedToken token) {
    size_t node = 0;
    for (char32_t character : token.pattern) {
        const auto [entry, is_new] = nodes_[node].next.emplace(character, nodes_.size());
        node = entry->second;
        if (is_new) nodes_.emplace_back();
    }
    if (nodes_[node].token != kNone) return false;
    nodes_[node].token = tokens_.size();
    tokens_.push_back(std::move(token));
    return true;
}

AddedTokens::Found AddedTokens::find_token(const AlignedText &text, size_t begin) const {
    Found found;
    size_t node = 0;
    for (size_t end = begin; end < text.size(); ++end) {
        const auto entry = nodes_[node].next.find(text[end].character);
        if (entry == nodes_[node].next.end()) break;
        node = entry->second;
        if (nodes_[node].token != kNone) found = {nodes_[node].token, end + 1};
    }
    return found;
}

void AddedTokens::extract_from(const AlignedText &text, std::vector<Split> &splits) const {
    size_t rest = 0;  // where the text that belongs to no token yet begins
    size_t position = 0;
    while (position < text.size()) {
        const Found found = find_token(text, position);
        if (found.token == kNone) {
            ++position;
            continue;
        }
        const AddedToken &token = tokens_[found.token];
        size_t begin = position, end = found.end;
        position = found.end;
        if (token.single_word && is_within_word(text, begin, end)) continue;
        if (token.lstrip) {
            while (begin > 0 && is_space(text[begin - 1].character)) --begin;
            begin = std::max(begin, rest);
        }
        if (token.rstrip) {
            while (end < text.size() && is_space(text[end].character)) ++end;
        }
        if (rest < begin) splits.push_back({slice(text, rest, begin), std::nullopt});
        // White space that the token before has taken can be a token as well: then both have it.
        if (begin < end) splits.push_back({slice(text, begin, end), token.id});
        rest = end;
    }
    if (rest != text.size()) splits.push_back({slice(text, rest, text.size()), std::nullopt});
}

std::vector<Split> AddedTokens::extract(std::vector<Split> splits) const {
    if (tokens_.empty()) return splits;
    std::vector<Split> extracted;
    for (Split &split : splits) {
        if (split.id) {
            extracted.push_back(std::move(split));
        } else {
            extract_from(split.text, extracted);
        }
    }
    return extracted;
}

}  // namespace mutoscope
