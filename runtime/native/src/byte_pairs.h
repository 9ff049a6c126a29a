// Byte pair encoding: a word becomes the ids of the pieces that its characters are merged to.
#ifndef MUTOSCOPE_BYTE_PAIRS_H
#define MUTOSCOPE_BYTE_PAIRS_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "aligned_text.h"

namespace mutoscope {

struct BytePairsOptions {
    std::optional<std::string> unk_token;  // without it, unknown characters vanish
    std::string end_of_word_suffix;
    bool fuse_unk = false;       // one unk_token for unknown characters in a row
    bool byte_fallback = false;  // tokens like <0x0A> for the bytes of an unknown character
    bool ignore_merges = false;  // a word that is in the vocabulary is one token
};

class BytePairs {
public:
    using Vocabulary = std::unordered_map<std::string, uint32_t>;

    struct Piece {
        uint32_t id;
        size_t length;  // bytes of the word's UTF-8
    };

    BytePairs() = default;
    BytePairs(Vocabulary vocabulary, BytePairsOptions options);

    // Joins the tokens left and right; what is added first is done first.
    // Returns the token that is not in the vocabulary, or nothing.
    std::optional<std::string> add_merge(const std::string &left, const std::string &right);

    std::optional<uint32_t> find_id(const std::string &token) const;
    size_t get_vocabulary_size() const { return vocabulary_.size(); }
    // How many spaces the tokens begin with, of those that do.
    std::unordered_map<uint32_t, size_t> count_leading_spaces() const;

    // Raises BundleError if the word needs unk_token and that is not in the vocabulary.
    std::vector<Piece> encode(const AlignedText &word) const;

private:
    struct Merge {
        uint32_t rank, id;
    };
    struct Symbol;
    struct Candidate;

    std::vector<Piece> look_up(const AlignedText &word) const;
    bool append_bytes(const std::string &text, std::vector<Piece> &pieces) const;
    uint32_t get_unknown_id() const;
    const Merge *find_merge(uint32_t left, uint32_t right) const;
    std::vector<Piece> merge(const std::vector<Piece> &pieces) const;

    Vocabulary vocabulary_;
    std::unordered_map<uint64_t, Merge> merges_;  // by left << 32 | right
    BytePairsOptions options_;
    uint32_t next_rank_ = 0;
};

}  // namespace mutoscope

#endif
