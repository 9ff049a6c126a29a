#include "json_reader.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "error.h"
#include "text.h"

namespace mutoscope {

namespace {

// Longer values are shown by their type.
constexpr size_t kMaxShownCharacters = 40;

size_t count_characters(std::string_view text) {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

// As Python's repr: the shortest digits that give the same number, as a power from 1e16 on and
// below 1e-4.
std::string format_repr(double value) {
    std::array<char, 32> buffer;
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                   std::chars_format::scientific);
    const std::string scientific(buffer.data(), end.ptr);
    const size_t mark = scientific.find('e');
    const int exponent = std::stoi(scientific.substr(mark + 1));
    if (value != 0 && (exponent < -4 || exponent >= 16)) return scientific;
    const auto digits = static_cast<int>(
        std::count_if(scientific.begin(), scientific.begin() + static_cast<std::ptrdiff_t>(mark),
                      [](char byte) { return byte >= '0' && byte <= '9'; }));
    const auto fixed = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                     std::chars_format::fixed, std::max(digits - 1 - exponent, 1));
    return {buffer.data(), fixed.ptr};
}

}  // namespace

// Takes what nlohmann's parser finds; its own values nest, and look a key up in linear time.
class JsonBuilder {
public:
    JsonBuilder(std::string_view text, JsonDocument &document, std::string &problem)
        : text_(text), document_(document), problem_(problem) {}

    bool null() { return add(JsonKind::null, 0); }
    bool boolean(bool value) { return add(JsonKind::boolean, value ? 1 : 0); }
    bool number_integer(int64_t value) { return add(JsonKind::whole, value); }
    bool number_unsigned(uint64_t value) {
        if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
            return add_text(JsonKind::big_whole, std::to_string(value));
        }
        return add(JsonKind::whole, static_cast<int64_t>(value));
    }
    bool number_float(double value, const std::string &digits) {
        if (digits.find_first_of(".eE") == std::string::npos) {
            return add_text(JsonKind::big_whole, digits);
        }
        if (!add(JsonKind::real, 0)) return false;
        document_.nodes_.back().real = value;
        return true;
    }
    bool string(const std::string &value) { return add_text(JsonKind::text, value); }
    bool key(const std::string &value) { return add_text(JsonKind::text, value); }
    bool binary(const nlohmann::json::binary_t &) { return false; }
    bool start_object(size_t) { return open(JsonKind::object); }
    bool end_object() { return close(); }
    bool start_array(size_t) { return open(JsonKind::list); }
    bool end_array() { return close(); }
    bool parse_error(size_t position, const std::string &token,
                     const nlohmann::json::exception &error) {
        constexpr int kNumberOverflow = 406;
        if (error.id == kNumberOverflow) {
            problem_ = "the number " + token.substr(0, kMaxShownCharacters) + " is not finite";
            return false;
        }
        problem_ = "a mistake at byte " + std::to_string(position);
        if (position == 0 || position > text_.size()) return false;
        const std::string_view rest = text_.substr(position - 1, kMaxShownCharacters);
        problem_ += ": " + quote(rest.substr(0, rest.find_first_of(",:]} \r\n\t", 1)));
        return false;
    }

private:
    bool add(JsonKind kind, int64_t value) {
        if (document_.nodes_.size() >= kMaxJsonValues) {
            problem_ = "more than " + std::to_string(kMaxJsonValues) + " values";
            return false;
        }
        JsonDocument::Node node;
        node.kind = kind;
        node.end = static_cast<uint32_t>(document_.nodes_.size() + 1);
        node.whole = value;
        document_.nodes_.push_back(node);
        return true;
    }

    bool add_text(JsonKind kind, const std::string &value) {
        if (!add(kind, 0)) return false;
        document_.nodes_.back().text = {static_cast<uint32_t>(document_.texts_.size()),
                                        static_cast<uint32_t>(value.size())};
        document_.texts_ += value;
        return true;
    }

    bool open(JsonKind kind) {
        if (open_.size() >= kMaxJsonDepth) {
            problem_ = "more than " + std::to_string(kMaxJsonDepth) + " values inside each other";
            return false;
        }
        open_.push_back(document_.nodes_.size());
        return add(kind, 0);
    }

    bool close() {
        document_.nodes_[open_.back()].end = static_cast<uint32_t>(document_.nodes_.size());
        open_.pop_back();
        return true;
    }

    std::string_view text_;
    JsonDocument &document_;
    std::string &problem_;
    std::vector<size_t> open_;  // the lists and objects that have not ended
};

std::optional<JsonDocument> JsonDocument::parse(std::string_view text, std::string &problem) {
    if (text.size() > kMaxJsonBytes) {
        problem = "more than " + std::to_string(kMaxJsonBytes >> 20) + " MiB";
        return std::nullopt;
    }
    // The parser takes a zero byte for the end, and skips a mark of the byte order.
    const size_t zero = text.find('\0');
    if (zero != std::string_view::npos || text.substr(0, 3) == "\xEF\xBB\xBF") {
        problem = "a mistake at byte " + std::to_string(zero + 1);
        return std::nullopt;
    }
    std::optional<JsonDocument> document(std::in_place);
    JsonBuilder builder(text, *document, problem);
    if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return std::nullopt;
    return document;
}

JsonValue JsonDocument::root() const { return {this, 0}; }

double JsonValue::number() const {
    if (kind() == JsonKind::real) return node().real;
    if (kind() == JsonKind::whole) return static_cast<double>(node().whole);
    const std::string_view digits = text();
    double value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
}

std::string_view JsonValue::text() const {
    const JsonDocument::Span span = node().text;
    return std::string_view(document_->texts_).substr(span.begin, span.size);
}

std::vector<JsonValue> JsonValue::items() const {
    std::vector<JsonValue> result;
    for (uint32_t index = index_ + 1; index < node().end;) {
        const JsonValue item(document_, index);
        result.push_back(item);
        index = item.node().end;
    }
    return result;
}

std::vector<std::pair<std::string_view, JsonValue>> JsonValue::members() const {
    std::vector<std::pair<std::string_view, JsonValue>> result;
    std::unordered_map<std::string_view, size_t> places;
    for (uint32_t index = index_ + 1; index < node().end;) {
        const JsonValue key(document_, index);
        const auto [place, is_new] = places.emplace(key.text(), result.size());
        if (is_new) {
            result.emplace_back(key.text(), key.next());
        } else {
            result[place->second].second = key.next();
        }
        index = key.next().node().end;
    }
    return result;
}

bool JsonDocument::repeats_a_key() const {
    for (uint32_t index = 0; index < nodes_.size(); ++index) {
        if (nodes_[index].kind != JsonKind::object) continue;
        size_t num_keys = 0;
        for (uint32_t key = index + 1; key < nodes_[index].end; key = nodes_[key + 1].end) {
            ++num_keys;
        }
        if (JsonValue(this, index).members().size() < num_keys) return true;
    }
    return false;
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
    std::optional<JsonValue> found;
    for (uint32_t index = index_ + 1; index < node().end;) {
        const JsonValue name(document_, index);
        if (name.text() == key) found = name.next();
        index = name.next().node().end;
    }
    return found;
}

std::string JsonValue::describe() const {
    std::string repr;
    append_repr(repr);
    if (count_characters(repr) <= kMaxShownCharacters) return repr;
    switch (kind()) {
        case JsonKind::text:
            return "a str";
        case JsonKind::list:
            return "a list";
        case JsonKind::object:
            return "a dict";
        default:
            return "a int";
    }
}

// Stops soon after what can be shown; so it nests no deeper than that.
void JsonValue::append_repr(std::string &repr) const {
    switch (kind()) {
        case JsonKind::null:
            repr += "None";
            return;
        case JsonKind::boolean:
            repr += boolean() ? "True" : "False";
            return;
        case JsonKind::whole:
            repr += std::to_string(whole());
            return;
        case JsonKind::real:
            repr += format_repr(number());
            return;
        case JsonKind::text:
            repr += quote(text());
            return;
        case JsonKind::big_whole:
            repr += text();
            return;
        case JsonKind::list:
        case JsonKind::object:
            break;
    }
    const bool is_list = kind() == JsonKind::list;
    const uint32_t end = node().end;
    const char *separator = is_list ? "[" : "{";
    if (index_ + 1 == end) repr += separator;
    for (uint32_t index = index_ + 1; index < end;) {
        if (repr.size() > 4 * kMaxShownCharacters) return;
        JsonValue item(document_, index);
        repr += separator;
        separator = ", ";
        if (!is_list) {
            repr += quote(item.text()) + ": ";
            item = item.next();
        }
        item.append_repr(repr);
        index = item.node().end;
    }
    repr += is_list ? ']' : '}';
}

std::string JsonField::where() const {
    if (parent_ == nullptr) return std::string(key_);
    if (index_ >= 0) return parent_->where() + "[" + std::to_string(index_) + "]";
    return parent_->where() + ": " + std::string(key_);
}

void JsonField::fail(const std::string &rule) const {
    throw BundleError(where() + " must be " + rule);
}

void JsonField::check_object() const {
    if (value_.kind() != JsonKind::object) fail("an object");
}

std::string JsonField::read_text() const {
    if (value_.kind() != JsonKind::text) fail("of type str");
    return std::string(value_.text());
}

bool JsonField::read_bool() const {
    if (value_.kind() != JsonKind::boolean) fail("of type bool");
    return value_.boolean();
}

double JsonField::read_number() const {
    if (!value_.is_number()) fail("a number");
    return value_.number();
}

double JsonField::read_positive_or_zero() const {
    const double number = read_number();
    if (number < 0) fail("0 or more");
    return number;
}

int64_t JsonField::read_whole(int64_t minimum, int64_t maximum) const {
    if (!value_.is_whole()) fail("a whole number");
    if (value_.kind() == JsonKind::big_whole || value_.whole() < minimum ||
        value_.whole() > maximum) {
        fail("within " + std::to_string(minimum) + " and " + std::to_string(maximum));
    }
    return value_.whole();
}

int JsonField::read_int(int minimum) const {
    return static_cast<int>(read_whole(minimum, std::numeric_limits<int>::max()));
}

JsonField JsonField::get(std::string_view key) const {
    const std::optional<JsonField> found = find(key);
    if (!found) throw BundleError(where() + ": " + std::string(key) + " is missing");
    return *found;
}

std::optional<JsonField> JsonField::find(std::string_view key) const {
    check_object();
    const std::optional<JsonValue> value = value_.find(key);
    if (!value) return std::nullopt;
    return JsonField(*value, this, key);
}

std::optional<JsonField> JsonField::find_value(std::string_view key) const {
    std::optional<JsonField> found = find(key);
    if (found && found->value().kind() == JsonKind::null) found.reset();
    return found;
}

}  // namespace mutoscope
