#include "images.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "blurring.h"
#include "error.h"
#include "records.h"
#include "resampling.h"
#include "text.h"

namespace mutoscope {

namespace {

constexpr size_t kChannels = 3;
constexpr int64_t kMaximumSide = 65535;
// 400 MB as 8-bit RGB. A photo that covers a clip of 4096 x 4096 from 3:1 has a third of it.
constexpr int64_t kMaximumPixels = int64_t{1} << 27;
constexpr float kWhite = 255.0F;

struct Size {
    int64_t height;
    int64_t width;
};

// What is between two operations: 8-bit pixels until one makes floats of them, [H, W, 3].
struct Picture {
    ImageView view;  // the caller's pixels, or `pixels`; of floats only the size counts
    std::vector<uint8_t> pixels;
    std::vector<float> floats;  // empty while it is 8-bit
};

bool has_more_pixels_than_allowed(const Size &size) {
    return size.width > kMaximumPixels / size.height;
}

// The fields of an operation, checked when they are read.
class Arguments {
public:
    Arguments(const ImageOperation &operation, const Size &clip)
        : operation_(operation), clip_(clip) {}

    Size read_size() const {
        const Size size = {read_side(operation_.height), read_side(operation_.width)};
        if (has_more_pixels_than_allowed(size)) {
            throw make_error("size " + std::to_string(size.height) + " x " +
                             std::to_string(size.width) + " must be at most " +
                             std::to_string(kMaximumPixels) + " pixels");
        }
        return size;
    }

    Filter read_filter() const {
        static constexpr std::pair<const char *, Filter> kFilters[] = {
            {"box", Filter::box},
            {"bilinear", Filter::bilinear},
            {"bicubic", Filter::bicubic},
            {"lanczos", Filter::lanczos},
        };
        std::vector<std::string> known;
        for (const auto &[name, filter] : kFilters) {
            if (operation_.filter == name) return filter;
            known.emplace_back(name);
        }
        throw make_error("filter " + (operation_.filter ? quote(*operation_.filter) : "None") +
                         " is unknown (known: " + join(known) + ")");
    }

    // Mean or std.
    std::array<float, kChannels> read_channels(const std::optional<std::vector<double>> &values,
                                               const std::string &name) const {
        if (!values || values->size() != kChannels) {
            throw make_error(name + " must be three numbers");
        }
        std::array<float, kChannels> channels{};
        std::transform(values->begin(), values->end(), channels.begin(),
                       [](double value) { return static_cast<float>(value); });
        return channels;
    }

    const ImageOperation &operation() const { return operation_; }

    // The pixels, which must be 8-bit still.
    const ImageView &read_image(const Picture &picture) const {
        if (!picture.floats.empty()) {
            throw make_error("it takes 8-bit pixels, and an operation before it made floats");
        }
        return picture.view;
    }

private:
    int64_t read_side(const std::optional<ImageSize> &side) const {
        int64_t length = 0;
        std::string text = "None";
        if (side && !side->name.empty()) {
            length = side->name == "height"  ? clip_.height
                     : side->name == "width" ? clip_.width
                                             : 0;
            text = quote(side->name);
        } else if (side) {
            length = side->length;
            text = std::to_string(length);
        }
        if (length < 1) {
            throw make_error("size " + text + " must be a number of pixels, height or width");
        }
        if (length > kMaximumSide) {
            throw make_error("size " + std::to_string(length) + " must be at most " +
                             std::to_string(kMaximumSide) + " pixels");
        }
        return length;
    }

    BundleError make_error(const std::string &problem) const {
        return BundleError("manifest.json: images: " + operation_.kind + ": " + problem +
                           ": use a newer libmutoscope");
    }

    const ImageOperation &operation_;
    Size clip_;
};

std::string describe(int64_t width, int64_t height) {
    return std::to_string(width) + " x " + std::to_string(height);
}

void set_pixels(Picture &picture, const Size &size, std::vector<uint8_t> pixels) {
    picture.pixels = std::move(pixels);
    picture.view = {picture.pixels.data(), size.height, size.width};
}

void apply_resize(Picture &picture, const Arguments &arguments) {
    const Size size = arguments.read_size();
    const ImageView &image = arguments.read_image(picture);
    const Window whole = {0, 0, size.height, size.width};
    set_pixels(picture, size,
               resize(image, size.height, size.width, arguments.read_filter(), whole));
}

// As Python's float //, which can come out one below what the quotient rounds to.
int64_t divide_floats(double dividend, double divisor) {
    const double quotient = (dividend - std::fmod(dividend, divisor)) / divisor;
    const double floor = std::floor(quotient);
    return static_cast<int64_t>(quotient - floor > 0.5 ? floor + 1.0 : floor);
}

int64_t halve_down(int64_t value) { return (value - (value < 0 ? 1 : 0)) / 2; }

// Cover the size and cut its middle out, rounded as I2VGen-XL rounds: the cover can come out a
// pixel short, and its edge black.
void apply_resize_and_crop(Picture &picture, const Arguments &arguments) {
    const ImageView &image = arguments.read_image(picture);
    const Size size = arguments.read_size();
    const auto old_height = static_cast<double>(image.height);
    const auto old_width = static_cast<double>(image.width);
    const double scale = std::min(old_width / static_cast<double>(size.width),
                                  old_height / static_cast<double>(size.height));
    const Size cover = {std::max<int64_t>(1, divide_floats(old_height, scale)),
                        std::max<int64_t>(1, divide_floats(old_width, scale))};
    if (has_more_pixels_than_allowed(cover)) {
        throw ParameterError("image is " + describe(image.width, image.height) +
                             " pixels and would be " + describe(cover.width, cover.height) +
                             " to cover " + describe(size.width, size.height) +
                             ": use one that is less narrow");
    }
    const Window middle = {halve_down(cover.height - size.height),
                           halve_down(cover.width - size.width), size.height, size.width};
    set_pixels(picture, size,
               resize(image, cover.height, cover.width, arguments.read_filter(), middle));
}

void apply_blur_and_resize(Picture &picture, const Arguments &arguments) {
    const ImageView &image = arguments.read_image(picture);
    if (std::min(image.height, image.width) < 2) {
        throw ParameterError("image is " + describe(image.width, image.height) +
                             " pixels; this bundle needs at least 2 x 2: use a larger one");
    }
    const Size size = arguments.read_size();
    picture.floats = blur_and_resize(image, size.height, size.width);
    picture.view = {nullptr, size.height, size.width};
}

// The picture as floats; 8-bit pixels become 0 to 1.
void make_floats(Picture &picture) {
    if (!picture.floats.empty()) return;
    const ImageView &view = picture.view;
    const size_t size =
        static_cast<size_t>(view.height) * static_cast<size_t>(view.width) * kChannels;
    picture.floats.resize(size);
    std::transform(view.pixels, view.pixels + size, picture.floats.begin(),
                   [](uint8_t pixel) { return static_cast<float>(pixel) / kWhite; });
}

void apply_normalize(Picture &picture, const Arguments &arguments) {
    const auto mean = arguments.read_channels(arguments.operation().mean, "mean");
    const auto std = arguments.read_channels(arguments.operation().std, "std");
    make_floats(picture);
    size_t channel = 0;
    for (float &value : picture.floats) {
        value = (value - mean[channel]) / std[channel];
        channel = channel + 1 < kChannels ? channel + 1 : 0;
    }
}

void apply(Picture &picture, const ImageOperation &operation, const Size &clip) {
    static constexpr std::pair<const char *, void (*)(Picture &, const Arguments &)> kOperations[] =
        {
            {"resize", apply_resize},
            {"resize_and_crop", apply_resize_and_crop},
            {"blur_and_resize", apply_blur_and_resize},
            {"normalize", apply_normalize},
        };
    std::vector<std::string> known;
    for (const auto &[name, function] : kOperations) {
        if (operation.kind == name) return function(picture, Arguments(operation, clip));
        known.emplace_back(name);
    }
    throw BundleError("manifest.json: images: operation " + quote(operation.kind) +
                      " is unknown (known: " + join(known) + "): use a newer libmutoscope");
}

}  // namespace

Array prepare_image(const uint8_t *pixels, int64_t image_height, int64_t image_width,
                    const ImageRecord &record, int64_t height, int64_t width) {
    if (std::min(image_height, image_width) < 1 ||
        std::max(image_height, image_width) > kMaximumSide) {
        throw ParameterError("image is " + describe(image_width, image_height) +
                             " pixels; it must have 1 to " + std::to_string(kMaximumSide) +
                             " in each row and column: use another picture");
    }
    Picture picture = {{pixels, image_height, image_width}, {}, {}};
    for (const ImageOperation &operation : record.operations) {
        apply(picture, operation, {height, width});
    }
    make_floats(picture);
    const ImageView &view = picture.view;
    const Array result = Array::make(DType::float32, {1, kChannels, view.height, view.width});
    const size_t plane = static_cast<size_t>(view.height) * static_cast<size_t>(view.width);
    for (size_t i = 0; i < plane; ++i) {
        for (size_t channel = 0; channel < kChannels; ++channel) {
            result.as<float>()[channel * plane + i] = picture.floats[i * kChannels + channel];
        }
    }
    return result;
}

}  // namespace mutoscope
