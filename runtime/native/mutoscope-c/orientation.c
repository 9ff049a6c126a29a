#include "orientation.h"

#include <stdbool.h>
#include <string.h>

/* Bytes of a file, most significant first or last. Offsets are checked by the callers. */
static uint32_t read_uint(const uint8_t *bytes, size_t count, bool is_little) {
    uint32_t value = 0;
    size_t index;
    for (index = 0; index < count; index++) {
        value = value << 8 | bytes[is_little ? count - 1 - index : index];
    }
    return value;
}

/* TIFF as EXIF has it: 8 bytes of header, then a list of 12 bytes for each tag. */
static int find_tag(const uint8_t *tiff, size_t bytes) {
    enum { ORIENTATION_TAG = 0x0112, SHORT_TYPE = 3 };
    bool is_little;
    size_t offset;
    size_t num_tags;
    if (bytes < 8) return 1;
    is_little = memcmp(tiff, "II", 2) == 0;
    if (!is_little && memcmp(tiff, "MM", 2) != 0) return 1;
    if (read_uint(tiff + 2, 2, is_little) != 42) return 1;
    offset = read_uint(tiff + 4, 4, is_little);
    if (offset > bytes - 2) return 1;
    num_tags = read_uint(tiff + offset, 2, is_little);
    for (offset += 2; num_tags > 0 && bytes - offset >= 12; num_tags--, offset += 12) {
        const uint8_t *tag = tiff + offset;
        uint32_t value = read_uint(tag + 8, 2, is_little);
        if (read_uint(tag, 2, is_little) != ORIENTATION_TAG) continue;
        if (read_uint(tag + 2, 2, is_little) != SHORT_TYPE) return 1;
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* Segments: 0xFF, a kind, and from a length of 2 bytes on what it counts. */
static int search_jpeg(const uint8_t *file, size_t bytes) {
    enum { APP1 = 0xE1, START_OF_SCAN = 0xDA };
    size_t offset = 2;
    while (bytes - offset >= 4 && file[offset] == 0xFF) {
        const uint8_t *segment = file + offset + 2;
        size_t length = read_uint(segment, 2, false);
        if (file[offset + 1] == 0xFF) { /* filling */
            offset++;
            continue;
        }
        if (file[offset + 1] == START_OF_SCAN) return 1;
        if (length < 2 || length > bytes - offset - 2) return 1;
        if (file[offset + 1] == APP1 && length >= 8 && memcmp(segment + 2, "Exif\0", 6) == 0) {
            return find_tag(segment + 8, length - 8);
        }
        offset += 2 + length;
    }
    return 1;
}

/* Chunks: a length of 4 bytes, a kind of 4, the data, and 4 bytes of checksum. */
static int search_png(const uint8_t *file, size_t bytes) {
    size_t offset = 8;
    while (bytes - offset >= 12) {
        size_t length = read_uint(file + offset, 4, false);
        if (length > bytes - offset - 12) return 1;
        if (memcmp(file + offset + 4, "eXIf", 4) == 0) return find_tag(file + offset + 8, length);
        offset += 12 + length;
    }
    return 1;
}

int find_orientation(const uint8_t *file, size_t bytes) {
    if (bytes >= 8 && memcmp(file, "\x89PNG\r\n\x1a\n", 8) == 0) return search_png(file, bytes);
    if (bytes >= 2 && memcmp(file, "\xff\xd8", 2) == 0) return search_jpeg(file, bytes);
    return 1;
}

void make_upright(uint8_t *upright, const uint8_t *pixels, size_t height, size_t width,
                  int orientation) {
    bool is_transposed = orientation >= 5;
    bool flips_rows = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    bool flips_columns =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    size_t num_rows = is_transposed ? width : height;
    size_t num_columns = is_transposed ? height : width;
    size_t row;
    size_t column;
    for (row = 0; row < num_rows; row++) {
        for (column = 0; column < num_columns; column++) {
            size_t y = is_transposed ? column : row;
            size_t x = is_transposed ? row : column;
            if (flips_rows) y = height - 1 - y;
            if (flips_columns) x = width - 1 - x;
            memcpy(upright, pixels + (y * width + x) * 3, 3);
            upright += 3;
        }
    }
}
