/* The picture that a video starts from. */
#ifndef MUTOSCOPE_C_IMAGE_H
#define MUTOSCOPE_C_IMAGE_H

#include <stdint.h>

#include "mutoscope.h"

/* Read an image file, turned upright as its EXIF orientation says.
 *
 * image: gets uint8 [H, W, 3] with this shape, and data for free().
 * Returns EXIT_OK or the code of what was reported. */
int load_image(mutoscope_array *image, int64_t shape[3], const char *path);

#endif
