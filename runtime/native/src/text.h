// Values as messages show them, in the forms that Python gives them.
#ifndef MUTOSCOPE_TEXT_H
#define MUTOSCOPE_TEXT_H

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mutoscope {

// The length of the UTF-8 sequence at a position that text has; 0 where there is none.
size_t find_sequence(std::string_view text, size_t position);

// As Python's repr: 'ddim'; control characters and invalid UTF-8 are escaped.
std::string quote(std::string_view text);

// As Python's format(value, "g"): 7.5, 1e+06.
std::string format_number(double value);

// [1, 4, 16, 8, 8]
std::string format_shape(const std::vector<int64_t> &shape);

// Joined by ", ".
std::string join(const std::vector<std::string> &words);

// As ranges: 1-4, 8, 16. The numbers are sorted.
std::string describe_counts(const std::vector<int> &counts);

}  // namespace mutoscope

#endif
