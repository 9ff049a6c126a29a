#include "text.h"

#include <cstdio>

namespace mutoscope {
namespace {

void append_escape(std::string &out, unsigned char byte) {
    char escape[5];
    std::snprintf(escape, sizeof escape, "\\x%02x", byte);
    out += escape;
}

void append_quoted(std::string &out, unsigned char byte, char mark) {
    switch (byte) {
        case '\n':
            out += "\\n";
            return;
        case '\r':
            out += "\\r";
            return;
        case '\t':
            out += "\\t";
            return;
        case '\\':
            out += "\\\\";
            return;
        default:
            break;
    }
    if (byte < 0x20 || byte == 0x7F) {
        append_escape(out, byte);
        return;
    }
    if (byte == static_cast<unsigned char>(mark)) out += '\\';
    out += static_cast<char>(byte);
}

}  // namespace

size_t find_sequence(std::string_view text, size_t position) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[position + i]); };
    const unsigned char lead = byte(0);
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (length == 0 || lead > 0xF4 || length > text.size() - position) return 0;
    for (size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return 0;
    }
    // Overlong forms, surrogates, beyond U+10FFFF.
    if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) ||
        (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) {
        return 0;
    }
    return length;
}

std::string quote(std::string_view text) {
    const bool has_single = text.find('\'') != text.npos;
    const char mark = has_single && text.find('"') == text.npos ? '"' : '\'';
    std::string out(1, mark);
    for (size_t i = 0; i < text.size();) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const size_t length = find_sequence(text, i);
        if (length == 0) {
            append_escape(out, byte);
        } else if (length == 1) {
            append_quoted(out, byte, mark);
        } else if (length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA1) {
            append_escape(out, static_cast<unsigned char>(text[i + 1]));
        } else {
            out += text.substr(i, length);
        }
        i += length == 0 ? 1 : length;
    }
    return out + mark;
}

std::string format_number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

std::string format_shape(const std::vector<int64_t> &shape) {
    std::vector<std::string> lengths;
    for (const int64_t length : shape) lengths.push_back(std::to_string(length));
    return "[" + join(lengths) + "]";
}

std::string join(const std::vector<std::string> &words) {
    std::string text;
    for (const std::string &word : words) {
        if (!text.empty()) text += ", ";
        text += word;
    }
    return text;
}

std::string describe_counts(const std::vector<int> &counts) {
    std::vector<std::string> ranges;
    for (size_t first = 0; first < counts.size();) {
        size_t last = first;
        while (last + 1 < counts.size() && counts[last + 1] == counts[last] + 1) ++last;
        std::string range = std::to_string(counts[first]);
        if (last > first) range += "-" + std::to_string(counts[last]);
        ranges.push_back(range);
        first = last + 1;
    }
    return join(ranges);
}

}  // namespace mutoscope
