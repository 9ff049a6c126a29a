// Reads tokenizer.json: what is not known exactly is refused.
#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "error.h"
#include "json_reader.h"
#include "text.h"
#include "tokenizer_parts.h"
#include "unicode.h"

namespace mutoscope {
namespace {

using OptionalValue = std::optional<JsonValue>;

constexpr int kMaxNesting = 8;  // of Sequences within each other

constexpr std::string_view kClipPattern =
    "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
constexpr std::string_view kSpecialTokensPattern = "<\\|startoftext\\|>|<\\|endoftext\\|>|";

class TokenizerFile {
public:
    explicit TokenizerFile(std::string name) : name_(std::move(name)) {}

    TokenizerParts read(JsonValue json) const;
    [[noreturn]] void reject(const std::string &reason) const;

private:
    [[noreturn]] void reject_unknown(const std::string &what) const;
    void check_kind(const OptionalValue &value, JsonKind kind, const char *what) const;
    // A field of an object; nothing if it is missing or null.
    OptionalValue find(JsonValue object, std::string_view key) const;
    std::vector<JsonValue> read_list(JsonValue object, const char *key) const;
    std::string read_text(const OptionalValue &value, const char *what) const;
    std::string read_type(JsonValue object, const char *part) const;
    std::string read_regex(JsonValue object) const;
    bool read_bool(JsonValue object, const char *key, std::optional<bool> fallback = {}) const;
    uint32_t read_id(const OptionalValue &value, const char *what) const;

    void read_normalizer(JsonValue json, int nesting, std::vector<Normalizer> &found) const;
    void read_pre_tokenizer(JsonValue json, int nesting, std::vector<PreTokenizer> &found) const;
    PreTokenizer read_split(JsonValue json) const;
    BytePairs read_byte_pairs(JsonValue json) const;
    BytePairsOptions read_options(JsonValue json) const;
    void read_merges(JsonValue json, BytePairs &byte_pairs) const;
    std::pair<std::string, std::string> read_merge(JsonValue merge) const;
    PostProcessor read_post_processor(JsonValue json) const;
    PostProcessor read_template(JsonValue json) const;
    uint32_t read_special_token(JsonValue json, const char *key) const;
    void read_added_tokens(const std::vector<JsonValue> &items, TokenizerParts &parts) const;

    std::string name_;
};

void TokenizerFile::reject(const std::string &reason) const {
    throw BundleError(name_ + " is not a tokenizer (" + reason + "): export again");
}

void TokenizerFile::reject_unknown(const std::string &what) const {
    throw BundleError(name_ + ": " + what +
                      " is unknown to this version: use a newer libmutoscope");
}

void TokenizerFile::check_kind(const OptionalValue &value, JsonKind kind, const char *what) const {
    if (value && value->kind() == kind) return;
    const char *name = "true or false";
    if (kind == JsonKind::object) name = "an object";
    if (kind == JsonKind::list) name = "a list";
    if (kind == JsonKind::text) name = "a text";
    reject(std::string(what) + " is not " + name);
}

OptionalValue TokenizerFile::find(JsonValue object, std::string_view key) const {
    const OptionalValue value = object.find(key);
    return value && value->kind() != JsonKind::null ? value : std::nullopt;
}

std::vector<JsonValue> TokenizerFile::read_list(JsonValue object, const char *key) const {
    const OptionalValue value = find(object, key);
    check_kind(value, JsonKind::list, key);
    return value->items();
}

std::string TokenizerFile::read_text(const OptionalValue &value, const char *what) const {
    check_kind(value, JsonKind::text, what);
    return std::string(value->text());
}

std::string TokenizerFile::read_type(JsonValue object, const char *part) const {
    check_kind(object, JsonKind::object, part);
    const OptionalValue type = find(object, "type");
    if (!type || type->kind() != JsonKind::text) reject(std::string(part) + " has no type");
    return std::string(type->text());
}

// The pattern of a Split or Replace; empty if it is not a regex.
std::string TokenizerFile::read_regex(JsonValue object) const {
    const OptionalValue pattern = find(object, "pattern");
    check_kind(pattern, JsonKind::object, "pattern");
    const auto members = pattern->members();
    if (members.size() != 1 || members[0].first != "Regex") return "";
    return read_text(members[0].second, "Regex");
}

bool TokenizerFile::read_bool(JsonValue object, const char *key,
                              std::optional<bool> fallback) const {
    const OptionalValue value = find(object, key);
    if (!value && fallback) return *fallback;
    check_kind(value, JsonKind::boolean, key);
    return value->boolean();
}

uint32_t TokenizerFile::read_id(const OptionalValue &value, const char *what) const {
    if (!value || value->kind() != JsonKind::whole || value->whole() < 0 ||
        value->whole() > UINT32_MAX) {
        reject(std::string(what) + " is not a token id");
    }
    return static_cast<uint32_t>(value->whole());
}

void TokenizerFile::read_normalizer(JsonValue json, int nesting,
                                    std::vector<Normalizer> &found) const {
    const std::string type = read_type(json, "normalizer");
    if (type == "Sequence") {
        if (nesting == kMaxNesting) reject_unknown("a normalizer within so many others");
        for (JsonValue normalizer : read_list(json, "normalizers")) {
            read_normalizer(normalizer, nesting + 1, found);
        }
    } else if (type == "NFC") {
        found.push_back(normalize_nfc);
    } else if (type == "Lowercase") {
        found.push_back(lowercase);
    } else if (type == "Replace") {
        if (read_regex(json) != "\\s+" || read_text(find(json, "content"), "content") != " ") {
            reject_unknown(
                "normalizer 'Replace' with another pattern than \\s+, or by another content than a "
                "space,");
        }
        found.push_back(collapse_spaces);
    } else {
        reject_unknown("normalizer " + quote(type));
    }
}

PreTokenizer TokenizerFile::read_split(JsonValue json) const {
    const std::string pattern = read_regex(json);
    PreTokenizer split;
    if (pattern == std::string(kSpecialTokensPattern) + std::string(kClipPattern)) {
        split.pattern = Pattern::clip_with_special_tokens;
    } else if (pattern != kClipPattern) {
        reject_unknown("pre_tokenizer 'Split' with the pattern " + quote(pattern));
    }
    const std::string behavior = read_text(find(json, "behavior"), "behavior");
    const bool inverted = read_bool(json, "invert");
    if (behavior == "Removed") {
        split.keeps_matches = inverted;
        split.keeps_rest = !inverted;
    } else if (behavior != "Isolated") {
        reject_unknown("pre_tokenizer 'Split' with the behavior " + quote(behavior));
    }
    return split;
}

void TokenizerFile::read_pre_tokenizer(JsonValue json, int nesting,
                                       std::vector<PreTokenizer> &found) const {
    const std::string type = read_type(json, "pre_tokenizer");
    if (type == "Sequence") {
        if (nesting == kMaxNesting) reject_unknown("a pre_tokenizer within so many others");
        for (JsonValue pre_tokenizer : read_list(json, "pretokenizers")) {
            read_pre_tokenizer(pre_tokenizer, nesting + 1, found);
        }
    } else if (type == "Split") {
        found.push_back(read_split(json));
    } else if (type == "ByteLevel") {
        PreTokenizer byte_level;
        byte_level.splits = read_bool(json, "use_regex", true);
        byte_level.pattern = Pattern::gpt2;
        byte_level.prepends_space = read_bool(json, "add_prefix_space");
        byte_level.maps_bytes = true;
        found.push_back(byte_level);
    } else {
        reject_unknown("pre_tokenizer " + quote(type));
    }
}

BytePairsOptions TokenizerFile::read_options(JsonValue json) const {
    const OptionalValue dropout = find(json, "dropout");
    if (dropout && !(dropout->is_number() && dropout->number() == 0)) {
        reject_unknown("model 'BPE' with dropout");
    }
    const OptionalValue prefix = find(json, "continuing_subword_prefix");
    if (prefix && !read_text(prefix, "continuing_subword_prefix").empty()) {
        reject_unknown("model 'BPE' with a continuing_subword_prefix");
    }
    BytePairsOptions options;
    const OptionalValue unk_token = find(json, "unk_token");
    if (unk_token) options.unk_token = read_text(unk_token, "unk_token");
    const OptionalValue suffix = find(json, "end_of_word_suffix");
    if (suffix) options.end_of_word_suffix = read_text(suffix, "end_of_word_suffix");
    options.fuse_unk = read_bool(json, "fuse_unk", false);
    options.byte_fallback = read_bool(json, "byte_fallback", false);
    options.ignore_merges = read_bool(json, "ignore_merges", false);
    return options;
}

// Either ["a", "b"] or, in old files, "a b".
std::pair<std::string, std::string> TokenizerFile::read_merge(JsonValue merge) const {
    if (merge.kind() == JsonKind::list) {
        const std::vector<JsonValue> tokens = merge.items();
        if (tokens.size() != 2) reject("a merge is not of two tokens");
        return {read_text(tokens[0], "a token of a merge"),
                read_text(tokens[1], "a token of a merge")};
    }
    const std::string line = read_text(merge, "a merge");
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
        reject("a merge is not of two tokens");
    }
    return {line.substr(0, space), line.substr(space + 1)};
}

void TokenizerFile::read_merges(JsonValue json, BytePairs &byte_pairs) const {
    const std::vector<JsonValue> merges = read_list(json, "merges");
    for (JsonValue merge : merges) {
        if (merge.kind() != merges.front().kind()) reject("merges of two formats");
        // A comment of old files.
        if (merge.kind() == JsonKind::text && merge.text().substr(0, 8) == "#version") continue;
        const auto [left, right] = read_merge(merge);
        const std::optional<std::string> missing = byte_pairs.add_merge(left, right);
        if (missing) reject("the merges need " + quote(*missing) + ", which vocab has not");
    }
}

BytePairs TokenizerFile::read_byte_pairs(JsonValue json) const {
    // Old files do not name the type.
    if (find(json, "type") || !find(json, "merges")) {
        const std::string type = read_type(json, "model");
        if (type != "BPE") reject_unknown("model " + quote(type));
    }
    const OptionalValue vocab = find(json, "vocab");
    check_kind(vocab, JsonKind::object, "vocab");
    const auto members = vocab->members();
    BytePairs::Vocabulary vocabulary;
    vocabulary.reserve(members.size());
    for (const auto &[token, id] : members) {
        vocabulary.emplace(token, read_id(id, "an id of vocab"));
    }
    BytePairs byte_pairs(std::move(vocabulary), read_options(json));
    read_merges(json, byte_pairs);
    return byte_pairs;
}

// ["<|endoftext|>", 49407]
uint32_t TokenizerFile::read_special_token(JsonValue json, const char *key) const {
    const std::vector<JsonValue> pair = read_list(json, key);
    if (pair.size() != 2 || pair[0].kind() != JsonKind::text) {
        reject(std::string(key) + " is not a token and its id");
    }
    return read_id(pair[1], key);
}

// What comes around one text: special tokens before and after it.
PostProcessor TokenizerFile::read_template(JsonValue json) const {
    const OptionalValue tokens = find(json, "special_tokens");
    check_kind(tokens, JsonKind::object, "special_tokens");
    PostProcessor post_processor;
    bool has_text = false;
    for (JsonValue piece : read_list(json, "single")) {
        check_kind(piece, JsonKind::object, "a piece of single");
        if (const OptionalValue text = find(piece, "Sequence")) {
            check_kind(text, JsonKind::object, "Sequence");
            if (has_text || read_text(find(*text, "id"), "the id of Sequence") != "A") {
                reject_unknown("post_processor 'TemplateProcessing' of other texts than one A");
            }
            has_text = true;
            continue;
        }
        const OptionalValue special = find(piece, "SpecialToken");
        check_kind(special, JsonKind::object, "SpecialToken");
        const std::string name = read_text(find(*special, "id"), "the id of SpecialToken");
        const OptionalValue token = find(*tokens, name);
        check_kind(token, JsonKind::object, "a special token of single");
        std::vector<uint32_t> &side = has_text ? post_processor.after : post_processor.before;
        for (JsonValue id : read_list(*token, "ids")) side.push_back(read_id(id, "an id of ids"));
    }
    if (!has_text) reject_unknown("post_processor 'TemplateProcessing' without a text");
    return post_processor;
}

PostProcessor TokenizerFile::read_post_processor(JsonValue json) const {
    const std::string type = read_type(json, "post_processor");
    if (type == "TemplateProcessing") return read_template(json);
    if (type != "RobertaProcessing" && type != "BertProcessing" && type != "ByteLevel") {
        reject_unknown("post_processor " + quote(type));
    }
    PostProcessor post_processor;
    if (type != "ByteLevel") {
        post_processor.before = {read_special_token(json, "cls")};
        post_processor.after = {read_special_token(json, "sep")};
    }
    if (type != "BertProcessing") {
        post_processor.trims_offsets = read_bool(json, "trim_offsets");
        post_processor.prepends_space = read_bool(json, "add_prefix_space");
    }
    return post_processor;
}

// The ids are those that `tokenizers` gives, whatever the file says: of the vocabulary, or the
// next.
void TokenizerFile::read_added_tokens(const std::vector<JsonValue> &items,
                                      TokenizerParts &parts) const {
    using Options = std::array<bool, 5>;
    std::map<std::string, Options> known;
    auto next_id = static_cast<uint32_t>(parts.byte_pairs.get_vocabulary_size());
    for (JsonValue item : items) {
        check_kind(item, JsonKind::object, "an added token");
        const std::string content = read_text(find(item, "content"), "an added token");
        read_id(find(item, "id"), "the id of an added token");
        const Options options = {read_bool(item, "single_word"), read_bool(item, "lstrip"),
                                 read_bool(item, "rstrip"), read_bool(item, "normalized"),
                                 read_bool(item, "special")};
        if (content.empty()) continue;
        const auto [entry, is_new] = known.emplace(content, options);
        if (!is_new) {
            if (entry->second == options) continue;
            reject_unknown("the added token " + quote(content) + " in two ways");
        }
        const bool is_normalized = options[3];
        AlignedText pattern = align(decode_utf8(name_, content));
        if (is_normalized) {
            for (Normalizer normalize : parts.normalizers) normalize(pattern);
        }
        const std::optional<uint32_t> id = parts.byte_pairs.find_id(content);
        AddedToken token = {id ? *id : next_id++, {}, options[0], options[1], options[2]};
        for (const AlignedCharacter &character : pattern) {
            token.pattern.push_back(character.character);
        }
        AddedTokens &tokens = is_normalized ? parts.normalized_tokens : parts.raw_tokens;
        if (!tokens.add(std::move(token))) {
            reject_unknown("the added token " + quote(content) + ", which reads like another,");
        }
    }
}

TokenizerParts TokenizerFile::read(JsonValue json) const {
    check_kind(json, JsonKind::object, "the whole");
    if (const OptionalValue version = find(json, "version")) {
        const std::string number = read_text(version, "version");
        if (number != "1.0") reject_unknown("version " + quote(number));
    }
    const OptionalValue model = find(json, "model");
    check_kind(model, JsonKind::object, "model");
    TokenizerParts parts;
    parts.byte_pairs = read_byte_pairs(*model);
    if (const OptionalValue normalizer = find(json, "normalizer")) {
        read_normalizer(*normalizer, 0, parts.normalizers);
    }
    if (const OptionalValue pre_tokenizer = find(json, "pre_tokenizer")) {
        read_pre_tokenizer(*pre_tokenizer, 0, parts.pre_tokenizers);
    }
    if (const OptionalValue post_processor = find(json, "post_processor")) {
        parts.post_processor = read_post_processor(*post_processor);
    }
    if (parts.post_processor.trims_offsets) {
        parts.leading_spaces = parts.byte_pairs.count_leading_spaces();
    }
    if (find(json, "added_tokens")) read_added_tokens(read_list(json, "added_tokens"), parts);
    return parts;
}

}  // namespace

Tokenizer Tokenizer::parse(std::string_view json_text, const std::string &file_name) {
    const TokenizerFile file(file_name);
    std::string problem;
    const std::optional<JsonDocument> document = JsonDocument::parse(json_text, problem);
    if (!document) file.reject(problem);
    return Tokenizer(std::make_shared<const TokenizerParts>(file.read(document->root())));
}

}  // namespace mutoscope
