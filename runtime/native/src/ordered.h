// Values by name, in an order: JSON objects whose keys are data, and what graphs take and return.
#ifndef MUTOSCOPE_ORDERED_H
#define MUTOSCOPE_ORDERED_H

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text.h"

namespace mutoscope {

template <typename T>
using Ordered = std::vector<std::pair<std::string, T>>;

// The value of a name, or null.
template <typename T>
const T *find(const Ordered<T> &values, std::string_view name) {
    for (const auto &[known, value] : values) {
        if (known == name) return &value;
    }
    return nullptr;
}

// The names, joined by ", ".
template <typename T>
std::string join_names(const Ordered<T> &values) {
    std::vector<std::string> names;
    for (const auto &entry : values) names.push_back(entry.first);
    return join(names);
}

}  // namespace mutoscope

#endif
