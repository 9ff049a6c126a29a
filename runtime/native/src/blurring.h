// Pictures at another size as Stable Video Diffusion makes them for its image encoder.
#ifndef MUTOSCOPE_BLURRING_H
#define MUTOSCOPE_BLURRING_H

#include <cstdint>
#include <vector>

#include "resampling.h"

namespace mutoscope {

// A Gaussian blur that takes out what the smaller size cannot hold, then bicubic with aligned
// corners: float32 [height, width, 3], about 0 to 1. The sides of the picture are from 2 to 65535,
// those of the result from 1 to 65535.
std::vector<float> blur_and_resize(const ImageView &image, int64_t height, int64_t width);

}  // namespace mutoscope

#endif
