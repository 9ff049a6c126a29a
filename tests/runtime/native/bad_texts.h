// Texts that tests make of a good one, each wrong in one place.
#ifndef MUTOSCOPE_TESTS_BAD_TEXTS_H
#define MUTOSCOPE_TESTS_BAD_TEXTS_H

#include <string>
#include <string_view>

#include "check.h"

// The text with one part of it replaced, which must be there.
inline std::string change(std::string text, std::string_view part, std::string_view replacement) {
    const size_t at = text.find(part);
    if (at == std::string::npos) {
        check::fail(__FILE__, __LINE__, "the text has no " + std::string(part));
        return "";
    }
    return text.replace(at, part.size(), replacement);
}

struct BadText {
    std::string_view part, replacement;
    const char *message;
};

#endif
