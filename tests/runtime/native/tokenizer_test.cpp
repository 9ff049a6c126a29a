// The tokenizer against what the `tokenizers` library gave.
//
//     tokenizer_test FOLDER
//
// FOLDER is what make_tokenizer_corpus.py wrote: NAME.json, a tokenizer, and beside it NAME.jsonl,
// texts with their ids. Without it, only what needs no tokenizer of others is tested.
#include "tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "check.h"
#include "manifest.h"

using namespace mutoscope;

namespace {

constexpr size_t kShownFailures = 10;

// A whole tokenizer; each test puts in what it is about.
nlohmann::json make_tokenizer_json() {
    return nlohmann::json::parse(R"({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "post_processor": {"type": "BertProcessing", "cls": ["<s>", 6], "sep": ["</s>", 7]},
        "model": {
            "type": "BPE", "unk_token": "?", "end_of_word_suffix": "</w>",
            "vocab": {"a": 0, "b": 1, "ab": 2, "b</w>": 3, "ab</w>": 4, "?": 5, "<s>": 6, "</s>": 7},
            "merges": [["a", "b</w>"], ["a", "b"]]}})");
}

Tokenizer parse(const nlohmann::json &json) { return Tokenizer::parse(json.dump(), "t.json"); }

std::vector<int64_t> list_ids(const std::vector<Token> &tokens) {
    std::vector<int64_t> ids;
    for (const Token &token : tokens) ids.push_back(token.id);
    return ids;
}

void check_refused(const char *path, const char *value, const char *message) {
    nlohmann::json json = make_tokenizer_json();
    json[nlohmann::json::json_pointer(path)] = nlohmann::json::parse(value);
    CHECK_THROWS(parse(json), message);
}

// How many texts of a corpus come out differently.
size_t count_mismatches(const std::filesystem::path &corpus, size_t &texts) {
    std::ifstream json_file(std::filesystem::path(corpus).replace_extension(".json"));
    const std::string json{std::istreambuf_iterator<char>(json_file), {}};
    const Tokenizer tokenizer = Tokenizer::parse(json, corpus.filename().string());
    std::ifstream lines(corpus);
    size_t mismatches = 0;
    for (std::string line; std::getline(lines, line); ++texts) {
        const nlohmann::json expected = nlohmann::json::parse(line);
        const auto text = expected["text"].get<std::string>();
        const std::vector<Token> tokens = tokenizer.encode(text);
        std::vector<size_t> begins;
        for (const Token &token : tokens) begins.push_back(token.begin);
        if (list_ids(tokens) == expected["ids"].get<std::vector<int64_t>>() &&
            begins == expected["begins"].get<std::vector<size_t>>()) {
            continue;
        }
        if (++mismatches <= kShownFailures) {
            check::fail(__FILE__, __LINE__,
                        corpus.stem().string() + ": " + line + " gave " +
                            check::show(list_ids(tokens)) + " at " + check::show(begins));
        }
    }
    return mismatches;
}

}  // namespace

TEST(ids_are_those_of_the_tokenizers_library) {
    for (const std::string &folder : test_arguments()) {
        size_t corpora = 0, texts = 0, mismatches = 0;
        for (const auto &entry : std::filesystem::directory_iterator(folder)) {
            if (entry.path().extension() != ".jsonl") continue;
            mismatches += count_mismatches(entry.path(), texts);
            ++corpora;
        }
        std::printf("       %zu texts, %zu tokenizers, %zu mismatches\n", texts, corpora,
                    mismatches);
        CHECK(texts > 0);
        CHECK_EQUAL(mismatches, 0);
    }
}

TEST(a_word_is_merged_and_its_place_is_known) {
    const std::vector<Token> tokens = parse(make_tokenizer_json()).encode("AB ab");
    CHECK_EQUAL(list_ids(tokens), std::vector<int64_t>{6, 4, 5, 4, 7});
    CHECK_EQUAL(tokens[1].begin, 0);
    CHECK_EQUAL(tokens[3].begin, 3);
    CHECK(tokens.front().is_special && tokens.back().is_special && !tokens[1].is_special);
}

TEST(an_empty_text_has_the_special_tokens_only) {
    CHECK_EQUAL(list_ids(parse(make_tokenizer_json()).encode("")), std::vector<int64_t>{6, 7});
}

TEST(invalid_utf8_is_refused_with_its_place) {
    const Tokenizer tokenizer = parse(make_tokenizer_json());
    const TokenizerRecord record = {"t.json", 8, 0};
    const std::pair<std::string, const char *> texts[] = {
        {"\xff", "negative_prompt is not valid UTF-8 at byte 0: "},
        {"ab\x80", "at byte 2: "},                  // continues nothing
        {"ab\xc3", "at byte 2: "},                  // ends early
        {"\xc3\xa9\xe2\x82", "at byte 2: "},        // ends early
        {"a\xc0\xaf", "at byte 1: "},               // longer than needed
        {"a\xe0\x80\xaf", "at byte 1: "},           // longer than needed
        {"a\xf0\x8f\xbf\xbf", "at byte 1: "},       // longer than needed
        {"a\xed\xa0\x80", "at byte 1: "},           // a surrogate
        {"a\xf4\x90\x80\x80", "at byte 1: "},       // behind U+10FFFF
        {"a\xf8\x88\x80\x80\x80", "at byte 1: "}};  // five bytes
    for (const auto &[text, message] : texts) {
        CHECK_THROWS(encode_prompt(tokenizer, record, "negative_prompt", text), message);
    }
    CHECK_EQUAL(tokenizer.encode("\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80").size(), 12);
}

TEST(a_prompt_is_padded) {
    const TokenizerRecord record = {"t.json", 6, 9};
    CHECK_EQUAL(encode_prompt(parse(make_tokenizer_json()), record, "prompt", "ab"),
                std::vector<int64_t>{6, 4, 7, 9, 9, 9});
}

TEST(a_prompt_that_is_too_long_is_refused_with_what_does_not_fit) {
    const TokenizerRecord record = {"t.json", 4, 0};
    const Tokenizer tokenizer = parse(make_tokenizer_json());
    CHECK_THROWS(encode_prompt(tokenizer, record, "prompt", "abbab ab"),
                 "(2 of them added by the tokenizer); this bundle's text encoder takes at most 4: "
                 "shorten it, what does not fit begins at character 4: 'ab ab'");
    const std::string long_text(300, 'b');
    CHECK_THROWS(encode_prompt(tokenizer, record, "prompt", long_text),
                 "begins at character 3: '" + std::string(40, 'b') + "...'");
    const TokenizerRecord none = {"t.json", 1, 0};
    CHECK_THROWS(encode_prompt(tokenizer, none, "prompt", "ab"), "begins at character 3: ''");
}

TEST(what_is_unknown_is_refused_by_its_name) {
    check_refused("/normalizer/type", R"("NFKC")",
                  "t.json: normalizer 'NFKC' is unknown to this version: use a newer libmutoscope");
    check_refused("/pre_tokenizer/type", R"("Metaspace")", "pre_tokenizer 'Metaspace' is unknown");
    check_refused("/post_processor/type", R"("Sequence")", "post_processor 'Sequence' is unknown");
    check_refused("/model/type", R"("Unigram")", "model 'Unigram' is unknown");
    check_refused("/model/dropout", "0.5", "model 'BPE' with dropout is unknown");
    check_refused("/model/continuing_subword_prefix", R"("##")",
                  "continuing_subword_prefix is unknown");
    check_refused("/version", R"("2.0")", "version '2.0' is unknown");
    check_refused(
        "/pre_tokenizer",
        R"({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Removed", "invert": true})",
        "pre_tokenizer 'Split' with the pattern");
    check_refused("/normalizer",
                  R"({"type": "Replace", "pattern": {"String": " "}, "content": " "})",
                  "normalizer 'Replace' with another pattern");
    std::string nested = R"({"type": "NFC"})";
    for (int i = 0; i < 20; ++i) {
        nested = R"({"type": "Sequence", "normalizers": [)" + nested + "]}";
    }
    check_refused("/normalizer", nested.c_str(), "a normalizer within so many others is unknown");
}

TEST(added_tokens_that_cannot_be_told_apart_are_refused) {
    const std::string flags =
        R"("id": 9, "single_word": false, "rstrip": false, "normalized": true, "special": false)";
    const auto make_token = [&flags](const char *content, const char *lstrip) {
        return std::string(R"({"content": ")") + content + R"(", "lstrip": )" + lstrip + ", " +
               flags + "}";
    };
    const std::string alike = "[" + make_token("B", "false") + "," + make_token("b", "true") + "]";
    check_refused("/added_tokens", alike.c_str(), "the added token 'b', which reads like another,");
    const std::string twice = "[" + make_token("B", "false") + "," + make_token("B", "true") + "]";
    check_refused("/added_tokens", twice.c_str(), "the added token 'B' in two ways is unknown");
}

TEST(what_is_damaged_is_refused) {
    CHECK_THROWS(Tokenizer::parse("{", "t.json"),
                 "t.json is not a tokenizer (a mistake at byte 2): export again");
    CHECK_THROWS(Tokenizer::parse("[]", "t.json"),
                 "is not a tokenizer (the whole is not an object)");
    CHECK_THROWS(Tokenizer::parse("{}", "t.json"), "is not a tokenizer (model is not an object)");
    CHECK_THROWS(Tokenizer::parse(std::string(100000, '['), "t.json"), "values inside each other");
    check_refused("/model/merges/0", R"(["a", "c"])", "the merges need 'c', which vocab has not");
    check_refused("/model/merges/1", R"(["b", "a"])", "the merges need 'ba', which vocab has not");
    check_refused("/model/merges/0", R"("a b")", "merges of two formats");
    check_refused("/model/merges/0", R"(["a", "b", "c"])", "a merge is not of two tokens");
    check_refused("/model/merges", R"(["a b c"])", "a merge is not of two tokens");
    check_refused("/model/merges", "3", "merges is not a list");
    check_refused("/model/vocab/a", "-1", "an id of vocab is not a token id");
    check_refused("/model/vocab/a", "4294967296", "an id of vocab is not a token id");
    check_refused("/model/fuse_unk", "1", "fuse_unk is not true or false");
    check_refused("/post_processor/cls", R"(["<s>"])", "cls is not a token and its id");
    check_refused("/added_tokens", R"([{"id": 6}])", "an added token is not a text");
}

TEST(an_unk_token_that_is_missing_is_an_error_once_it_is_needed) {
    nlohmann::json json = make_tokenizer_json();
    json["model"]["unk_token"] = "<unk>";
    const Tokenizer tokenizer = parse(json);
    CHECK_EQUAL(list_ids(tokenizer.encode("ab")), std::vector<int64_t>{6, 4, 7});
    CHECK_THROWS(tokenizer.encode("z"), "unk_token '<unk>' is not in its vocabulary");
}

TEST(a_very_long_word_takes_no_quadratic_time) {
    const std::string word(1000000, 'a');  // minutes if it did
    CHECK_EQUAL(parse(make_tokenizer_json()).encode(word).size(), word.size() + 2);
}
