#include "byte_pairs.h"

#include <array>
#include <queue>
#include <utility>

#include "error.h"
#include "text.h"
#include "unicode.h"

namespace mutoscope {
namespace {

constexpr size_t kNone = static_cast<size_t>(-1);

}  // namespace

// A piece of a word while it is merged; those that are left are linked.
struct BytePairs::Symbol {
    uint32_t id;
    size_t length;  // 0: merged into the one before
    size_t previous, next;
};

// A merge that may be done at a symbol, unless another one has changed it meanwhile.
struct BytePairs::Candidate {
    size_t position;
    Merge merge;

    // The lowest rank is on top, the leftmost of equal ones.
    bool operator<(const Candidate &other) const {
        return merge.rank != other.merge.rank ? merge.rank > other.merge.rank
                                              : position > other.position;
    }
};

BytePairs::BytePairs(Vocabulary vocabulary, BytePairsOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {}

std::optional<std::string> BytePairs::add_merge(const std::string &left, const std::string &right) {
    const std::optional<uint32_t> left_id = find_id(left), right_id = find_id(right);
    if (!left_id) return left;
    if (!right_id) return right;
    const std::optional<uint32_t> id = find_id(left + right);
    if (!id) return left + right;
    merges_[uint64_t{*left_id} << 32 | *right_id] = {next_rank_++, *id};
    return std::nullopt;
}

std::optional<uint32_t> BytePairs::find_id(const std::string &token) const {
    const auto found = vocabulary_.find(token);
    return found != vocabulary_.end() ? std::optional(found->second) : std::nullopt;
}

std::unordered_map<uint32_t, size_t> BytePairs::count_leading_spaces() const {
    std::unordered_map<uint32_t, size_t> counts;
    for (const auto &[token, id] : vocabulary_) {
        const size_t count = mutoscope::count_leading_spaces(align(decode_utf8("token", token)));
        if (count > 0) counts[id] = count;
    }
    return counts;
}

uint32_t BytePairs::get_unknown_id() const {
    const std::optional<uint32_t> id = find_id(*options_.unk_token);
    if (!id) {
        throw BundleError("the tokenizer's unk_token " + quote(*options_.unk_token) +
                          " is not in its vocabulary, and the prompt needs it: export again");
    }
    return *id;
}

// The tokens of the bytes; false if one has none.
bool BytePairs::append_bytes(const std::string &text, std::vector<Piece> &pieces) const {
    constexpr std::array<char, 17> kDigits = {"0123456789ABCDEF"};
    std::vector<Piece> bytes;
    for (char character : text) {
        const auto byte = static_cast<unsigned char>(character);
        const std::string token = {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
        const std::optional<uint32_t> id = find_id(token);
        if (!id) return false;
        bytes.push_back({*id, 1});
    }
    pieces.insert(pieces.end(), bytes.begin(), bytes.end());
    return true;
}

// The token of each character. The order in which an unknown one comes after the bytes of the next
// is that of `tokenizers`.
std::vector<BytePairs::Piece> BytePairs::look_up(const AlignedText &word) const {
    std::vector<Piece> pieces;
    pieces.reserve(word.size());
    std::optional<Piece> unknown;
    const auto flush = [&] {
        if (unknown) pieces.push_back(*unknown);
        unknown.reset();
    };
    std::string text;
    for (size_t i = 0; i < word.size(); ++i) {
        text.clear();
        append_utf8(text, word[i].character);
        const size_t length = text.size();
        if (i + 1 == word.size()) text += options_.end_of_word_suffix;
        if (const std::optional<uint32_t> id = find_id(text)) {
            flush();
            pieces.push_back({*id, length});
            continue;
        }
        if (options_.byte_fallback && append_bytes(text, pieces)) continue;
        if (!options_.unk_token) continue;
        if (unknown && options_.fuse_unk) {
            unknown->length += length;
        } else {
            flush();
            unknown = Piece{get_unknown_id(), length};
        }
    }
    flush();
    return pieces;
}

const BytePairs::Merge *BytePairs::find_merge(uint32_t left, uint32_t right) const {
    const auto found = merges_.find(uint64_t{left} << 32 | right);
    return found != merges_.end() ? &found->second : nullptr;
}

std::vector<BytePairs::Piece> BytePairs::merge(const std::vector<Piece> &pieces) const {
    std::vector<Symbol> symbols;
    symbols.reserve(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
        symbols.push_back({pieces[i].id, pieces[i].length, i > 0 ? i - 1 : kNone,
                           i + 1 < pieces.size() ? i + 1 : kNone});
    }
    std::priority_queue<Candidate> queue;
    const auto consider = [&](size_t position) {
        if (position == kNone || symbols[position].next == kNone) return;
        const Merge *found = find_merge(symbols[position].id, symbols[symbols[position].next].id);
        if (found) queue.push({position, *found});
    };
    for (size_t i = 0; i < symbols.size(); ++i) consider(i);
    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        Symbol &left = symbols[best.position];
        if (left.length == 0 || left.next == kNone) continue;
        Symbol &right = symbols[left.next];
        const Merge *found = find_merge(left.id, right.id);
        if (!found || found->id != best.merge.id) continue;
        left.id = best.merge.id;
        left.length += right.length;
        left.next = right.next;
        right.length = 0;
        if (left.next != kNone) symbols[left.next].previous = best.position;
        consider(left.previous);
        consider(best.position);
    }
    std::vector<Piece> merged;
    for (const Symbol &symbol : symbols) {
        if (symbol.length != 0) merged.push_back({symbol.id, symbol.length});
    }
    return merged;
}

std::vector<BytePairs::Piece> BytePairs::encode(const AlignedText &word) const {
    if (options_.ignore_merges) {
        std::string text;
        for (const AlignedCharacter &character : word) append_utf8(text, character.character);
        if (const std::optional<uint32_t> id = find_id(text)) return {{*id, text.size()}};
    }
    return merge(look_up(word));
}

}  // namespace mutoscope
