// Parsed JSON texts, and typed access to them with the messages of runtime/json_records.py.
#ifndef MUTOSCOPE_JSON_READER_H
#define MUTOSCOPE_JSON_READER_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "records.h"

namespace mutoscope {

// A bundle's texts are far below these; damaged ones must not take much memory.
constexpr size_t kMaxJsonBytes = size_t{64} << 20;
constexpr size_t kMaxJsonValues = 1000000;
constexpr int kMaxJsonDepth = 100;

// `big_whole` is a whole number that no int64 holds.
enum class JsonKind : uint8_t { null, boolean, whole, big_whole, real, text, list, object };

class JsonValue;

// The values of one text, in one block of memory: nothing nests, and nothing is slow to find in a
// text that was made to be slow.
class JsonDocument {
public:
    // Nothing where the text is not JSON (RFC 8259), and in `problem` why. Numbers must be finite
    // in float64.
    static std::optional<JsonDocument> parse(std::string_view text, std::string &problem);

    JsonValue root() const;
    // Whether an object anywhere has a key twice.
    bool repeats_a_key() const;

private:
    friend class JsonBuilder;
    friend class JsonValue;

    struct Span {
        uint32_t begin, size;
    };
    struct Node {
        JsonKind kind;
        uint32_t end;  // the node after this one and all that it holds
        union {
            int64_t whole;  // of booleans too
            double real;
            Span text;  // of texts and of numbers that fit in nothing, in texts_
        };
    };

    std::vector<Node> nodes_;  // an object holds its keys and values in turn
    std::string texts_;
};

// A value in a document, which must outlive it.
class JsonValue {
public:
    JsonKind kind() const { return node().kind; }
    bool is_whole() const { return kind() == JsonKind::whole || kind() == JsonKind::big_whole; }
    bool is_number() const { return is_whole() || kind() == JsonKind::real; }

    // For the kind that they name only.
    bool boolean() const { return node().whole != 0; }
    int64_t whole() const { return node().whole; }  // not of a big one
    double number() const;
    std::string_view text() const;
    std::vector<JsonValue> items() const;
    // A key that comes twice stands where it came first and has its last value, as in Python.
    std::vector<std::pair<std::string_view, JsonValue>> members() const;
    std::optional<JsonValue> find(std::string_view key) const;

    // As Python's repr, or the name of its type where that is long: "'ddim'", "a list".
    std::string describe() const;

private:
    friend class JsonDocument;

    JsonValue(const JsonDocument *document, uint32_t index) : document_(document), index_(index) {}

    const JsonDocument::Node &node() const { return document_->nodes_[index_]; }
    JsonValue next() const { return {document_, node().end}; }
    void append_repr(std::string &repr) const;

    const JsonDocument *document_;
    uint32_t index_;
};

// A value of a record and where it stands, for messages: "manifest.json: limits: height". A field
// must not outlive the one that it was got from. What does not fit raises BundleError.
class JsonField {
public:
    JsonField(JsonValue value, std::string_view name) : value_(value), key_(name) {}

    const JsonValue &value() const { return value_; }
    std::string where() const;
    [[noreturn]] void fail(const std::string &rule) const;

    void check_object() const;
    std::string read_text() const;
    bool read_bool() const;
    double read_number() const;
    double read_positive_or_zero() const;
    int64_t read_whole(int64_t minimum, int64_t maximum) const;
    int read_int(int minimum) const;

    // A field of an object.
    JsonField get(std::string_view key) const;
    std::optional<JsonField> find(std::string_view key) const;
    // The same, without those that are null.
    std::optional<JsonField> find_value(std::string_view key) const;

    // An object whose keys are data, each value made by read(field).
    template <typename Read>
    auto read_map(Read read) const {
        check_object();
        Ordered<decltype(read(*this))> result;
        for (const auto &[key, value] : value_.members()) {
            result.emplace_back(key, read(JsonField(value, this, key)));
        }
        return result;
    }
    // A list, each item made by read(field).
    template <typename Read>
    auto read_list(Read read) const {
        if (value_.kind() != JsonKind::list) fail("a list");
        std::vector<decltype(read(*this))> result;
        for (const JsonValue &item : value_.items()) {
            result.push_back(read(JsonField(item, this, result.size())));
        }
        return result;
    }

private:
    JsonField(JsonValue value, const JsonField *parent, std::string_view key)
        : value_(value), parent_(parent), key_(key) {}
    JsonField(JsonValue value, const JsonField *parent, size_t index)
        : value_(value), parent_(parent), index_(static_cast<int64_t>(index)) {}

    JsonValue value_;
    const JsonField *parent_ = nullptr;
    std::string_view key_;
    int64_t index_ = -1;  // in a list, where there is no key
};

}  // namespace mutoscope

#endif
