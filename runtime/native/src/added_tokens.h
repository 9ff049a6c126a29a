// Tokens that are cut out of a text before anything else is done with it.
#ifndef MUTOSCOPE_ADDED_TOKENS_H
#define MUTOSCOPE_ADDED_TOKENS_H

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "aligned_text.h"

namespace mutoscope {

struct AddedToken {
    uint32_t id;
    std::u32string pattern;  // what it looks like in the text; not empty
    bool single_word;        // not within a word
    bool lstrip, rstrip;     // takes the white space before, after it
};

// A set of added tokens: the longest of those that begin first is found.
class AddedTokens {
public:
    // False if there is another token with this pattern.
    bool add(AddedToken token);
    // Cuts the tokens out of all splits that have no id.
    std::vector<Split> extract(std::vector<Split> splits) const;

private:
    static constexpr size_t kNone = static_cast<size_t>(-1);
    struct Node {
        std::unordered_map<char32_t, size_t> next;
        size_t token = kNone;
    };
    struct Found {
        size_t token = kNone;  // kNone: no token begins there
        size_t end = 0;
    };

    Found find_token(const AlignedText &text, size_t begin) const;
    void extract_from(const AlignedText &text, std::vector<Split> &splits) const;

    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_ = std::vector<Node>(1);  // nodes_[0] is the root
};

}  // namespace mutoscope

#endif
