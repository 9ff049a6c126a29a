#define _POSIX_C_SOURCE 200809L

#include "image.h"

#include <errno.h>
#include <limits.h>
#include <stb_image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "interrupts.h"
#include "orientation.h"

/* All that a file or pipe has, for free(); NULL with errno if it cannot be read. */
static uint8_t *read_file(size_t *bytes, FILE *file) {
    size_t room = 1 << 16;
    uint8_t *data = malloc(room);
    *bytes = 0;
    while (data != NULL) {
        uint8_t *larger;
        *bytes += fread(data + *bytes, 1, room - *bytes, file);
        if (ferror(file)) break;
        if (feof(file)) return data;
        /* stb_image counts bytes as int. */
        errno = EFBIG;
        if (room > INT_MAX / 2) break;
        room *= 2;
        larger = realloc(data, room);
        if (larger == NULL) break;
        data = larger;
    }
    free(data);
    return NULL;
}

static uint8_t *read_path(size_t *bytes, const char *path) {
    uint8_t *data;
    int error;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    data = read_file(bytes, file);
    error = errno;
    fclose(file);
    errno = error;
    return data;
}

/* Decode a file, height and width as they are in it. */
static uint8_t *decode(int *height, int *width, const uint8_t *file, size_t bytes,
                       const char *path) {
    int channels;
    stbi_uc *pixels = stbi_load_from_memory(file, (int)bytes, width, height, &channels, 3);
    if (pixels == NULL) {
        report_error("%s is not an image that can be read (%s): use a PNG or JPEG file", path,
                     stbi_failure_reason());
    }
    return pixels;
}

int load_image(mutoscope_array *image, int64_t shape[3], const char *path) {
    int height;
    int width;
    int orientation;
    size_t bytes;
    uint8_t *pixels;
    uint8_t *file = read_path(&bytes, path);
    if (file == NULL) {
        if (was_interrupted()) return EXIT_INTERRUPTED;
        return report_error("%s cannot be read: %s", path, strerror(errno));
    }
    pixels = decode(&height, &width, file, bytes, path);
    orientation = find_orientation(file, bytes);
    free(file);
    if (pixels == NULL) return EXIT_ERROR;
    if (orientation != 1) {
        uint8_t *upright = malloc((size_t)height * (size_t)width * 3);
        if (upright != NULL) {
            make_upright(upright, pixels, (size_t)height, (size_t)width, orientation);
        }
        stbi_image_free(pixels);
        if (upright == NULL) return report_error("out of memory");
        pixels = upright;
    }
    shape[0] = orientation >= 5 ? width : height;
    shape[1] = orientation >= 5 ? height : width;
    shape[2] = 3;
    image->name = "image";
    image->data = pixels;
    image->shape = shape;
    image->rank = 3;
    image->dtype = MUTOSCOPE_UINT8;
    return EXIT_OK;
}
