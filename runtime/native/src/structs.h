// The public structs across versions: struct_size says what the caller was compiled with.
#ifndef MUTOSCOPE_STRUCTS_H
#define MUTOSCOPE_STRUCTS_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mutoscope.h"

namespace mutoscope {

// Raises Error with MUTOSCOPE_ERROR_ARGUMENT unless there is a struct, of a size that one may have.
void check_struct(const char *name, const void *given, size_t struct_size);
// Raises the same if a newer caller set a field that this version does not know.
void check_tail(const char *name, const void *given, size_t struct_size, size_t known_size);

// Fill what the caller has of a struct with defaults, and set its struct_size.
template <typename T>
void init_struct(const char *name, T *given, size_t struct_size, T defaults) {
    check_struct(name, given, struct_size);
    defaults.struct_size = static_cast<uint32_t>(struct_size);
    std::memset(static_cast<void *>(given), 0, struct_size);
    std::memcpy(static_cast<void *>(given), &defaults, std::min(struct_size, sizeof(T)));
}

// What the caller set; the rest is as in `defaults`.
template <typename T>
T read_struct(const char *name, const T *given, T defaults) {
    const size_t struct_size = given == nullptr ? 0 : given->struct_size;
    check_struct(name, given, struct_size);
    check_tail(name, given, struct_size, sizeof(T));
    std::memcpy(static_cast<void *>(&defaults), given, std::min(struct_size, sizeof(T)));
    return defaults;
}

// Write as much of a struct as the caller has room for; it was checked by check_struct.
template <typename T>
void write_struct(T *given, T value) {
    value.struct_size = given->struct_size;
    const size_t struct_size = value.struct_size;
    std::memset(static_cast<void *>(given), 0, struct_size);
    std::memcpy(static_cast<void *>(given), &value, std::min(struct_size, sizeof(T)));
}

}  // namespace mutoscope

#endif
