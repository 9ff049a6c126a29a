// UTF-8 and the properties of characters, as the parts of the `tokenizers` library see them.
//
// Their versions of Unicode differ (its NFC is older than its regexes), and a system library would
// bring yet another: hence own tables, made by scripts/make_unicode_tables.py.
#ifndef MUTOSCOPE_UNICODE_H
#define MUTOSCOPE_UNICODE_H

#include <cstdint>
#include <string>
#include <string_view>

namespace mutoscope {

// The characters of a text in UTF-8.
// name: what messages call the text. Raises ParameterError for invalid UTF-8.
std::u32string decode_utf8(const std::string &name, std::string_view text);
void append_utf8(std::string &text, char32_t character);
// 1 to 4.
size_t count_utf8_bytes(char32_t character);

bool is_letter(char32_t character);  // \p{L}
bool is_number(char32_t character);  // \p{N}
bool is_space(char32_t character);   // \s
bool is_word(char32_t character);    // \w
// What str.split() of Python takes for white space.
bool is_python_space(char32_t character);

// The lower case of one character by itself. That of U+0130 has two: this gives the first, "i";
// U+0307 is to follow.
char32_t to_lowercase(char32_t character);

// The canonical combining class; 0 for what is no mark.
uint32_t get_combining_class(char32_t character);
// The full canonical decomposition; empty if the character is its own.
std::u32string decompose(char32_t character);
// What two characters are composed to; 0 if they are not.
char32_t compose(char32_t first, char32_t second);

}  // namespace mutoscope

#endif
