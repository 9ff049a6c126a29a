// Pictures at another size, as Pillow makes them.
#ifndef MUTOSCOPE_RESAMPLING_H
#define MUTOSCOPE_RESAMPLING_H

#include <cstdint>
#include <vector>

namespace mutoscope {

enum class Filter { box, bilinear, bicubic, lanczos };

// Pixels of another owner: uint8 [height, width, 3], RGB.
struct ImageView {
    const uint8_t *pixels = nullptr;
    int64_t height = 0;
    int64_t width = 0;
};

// A rectangle of a picture; it may reach beyond its edges.
struct Window {
    int64_t top = 0;
    int64_t left = 0;
    int64_t height = 0;
    int64_t width = 0;
};

// What a window shows of a picture that is resized to height x width: uint8 [window.height,
// window.width, 3], black beyond the edges. Only what the window shows is computed. Sizes are at
// least 1, those of the picture and of the window at most 65535; what it is resized to may have
// more. To the bit as Image.resize and Image.crop of Pillow 13.
std::vector<uint8_t> resize(const ImageView &image, int64_t height, int64_t width, Filter filter,
                            const Window &window);

}  // namespace mutoscope

#endif
