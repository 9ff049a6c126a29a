// Pictures as graphs take them, made as the manifest says.
#ifndef MUTOSCOPE_IMAGES_H
#define MUTOSCOPE_IMAGES_H

#include <cstdint>

#include "array.h"

namespace mutoscope {

struct ImageRecord;

// What a graph takes for a picture: float32 [1, 3, H, W].
//
// pixels: uint8 [image_height, image_width, 3], RGB.
// record: the operations, in their order.
// height, width: those of the clip in pixels, which operations may name.
//
// Raises BundleError for an operation that is unknown or lacks what it needs, ParameterError for a
// picture that is too small, too large or too narrow for one. 8-bit operations give the values of
// runtime/images.py to the bit, blur_and_resize to 1e-6 (tests/runtime/native/images_test.cpp).
Array prepare_image(const uint8_t *pixels, int64_t image_height, int64_t image_width,
                    const ImageRecord &record, int64_t height, int64_t width);

}  // namespace mutoscope

#endif
