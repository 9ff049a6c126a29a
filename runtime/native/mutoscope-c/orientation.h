/* The orientation that a camera notes in a picture. */
#ifndef MUTOSCOPE_C_ORIENTATION_H
#define MUTOSCOPE_C_ORIENTATION_H

#include <stddef.h>
#include <stdint.h>

/* The EXIF orientation of a JPEG or PNG file, 1 to 8; 1, which is upright, where there is none or
 * the file is damaged. */
int find_orientation(const uint8_t *file, size_t bytes);

/* Turn and flip a picture so that it is upright.
 *
 * upright: uint8 [height, width, 3]; from an orientation of 5 on [width, height, 3].
 * pixels: uint8 [height, width, 3]. */
void make_upright(uint8_t *upright, const uint8_t *pixels, size_t height, size_t width,
                  int orientation);

#endif
