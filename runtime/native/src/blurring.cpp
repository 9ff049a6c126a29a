#include "blurring.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace mutoscope {

namespace {

constexpr size_t kChannels = 3;
constexpr int64_t kTaps = 4;
// The steepness of bicubic interpolation in torch and OpenCV.
constexpr double kCubicA = -0.75;

// What one new pixel of a line takes: weights.size() old pixels from `first` on.
struct Blend {
    size_t first;
    std::vector<float> weights;
};

// The kernel, of odd length 4 sigma but at least 3, sum 1.
std::vector<double> make_gaussian(double sigma) {
    const auto shortest = static_cast<int64_t>(std::max(4.0 * sigma, 3.0));
    const int64_t radius = shortest / 2;  // Of an even length, the next odd one has the same.
    std::vector<double> kernel;
    double sum = 0.0;
    for (int64_t x = -radius; x <= radius; ++x) {
        kernel.push_back(std::exp(-static_cast<double>(x * x) / (2.0 * sigma * sigma)));
        sum += kernel.back();
    }
    for (double &weight : kernel) weight /= sum;
    return kernel;
}

// The weights of the pixels around a position, by Keys' cubic convolution.
std::array<double, kTaps> make_cubic(double fraction) {
    const auto compute_inner = [](double x) {
        return ((kCubicA + 2.0) * x - (kCubicA + 3.0)) * (x * x) + 1.0;
    };
    const auto compute_outer = [](double x) {
        return ((kCubicA * x - 5.0 * kCubicA) * x + 8.0 * kCubicA) * x - 4.0 * kCubicA;
    };
    return {compute_outer(fraction + 1.0), compute_inner(fraction), compute_inner(1.0 - fraction),
            compute_outer(2.0 - fraction)};
}

// What each new pixel of a line takes. Positions are computed in float32, as torch does: on a long
// line their rounding shows.
std::vector<Blend> make_blends(int64_t old_size, int64_t new_size) {
    const double ratio = static_cast<double>(old_size) / static_cast<double>(new_size);
    const std::vector<double> kernel = make_gaussian(std::max((ratio - 1.0) / 2.0, 0.001));
    const auto radius = static_cast<int64_t>(kernel.size() / 2);
    const int64_t last = old_size - 1;
    const float scale =
        static_cast<float>(last) / static_cast<float>(std::max<int64_t>(new_size - 1, 1));
    std::vector<Blend> blends;
    std::vector<double> weights;
    for (int64_t i = 0; i < new_size; ++i) {
        const float position = scale * static_cast<float>(i);
        const float floor = std::floor(position);
        const auto cubic = make_cubic(static_cast<double>(position - floor));
        const int64_t first_tap = static_cast<int64_t>(floor) - 1;
        const int64_t begin = std::max<int64_t>(first_tap - radius, 0);
        const int64_t end = std::min(first_tap + kTaps + radius, old_size);
        weights.assign(static_cast<size_t>(end - begin), 0.0);
        for (int64_t tap = 0; tap < kTaps; ++tap) {
            // Interpolation repeats the pixels at the edge, the blur before it mirrors them.
            const int64_t center = std::clamp<int64_t>(first_tap + tap, 0, last);
            for (int64_t offset = -radius; offset <= radius; ++offset) {
                int64_t source = std::abs(center + offset);
                if (source > last) source = 2 * last - source;
                weights[static_cast<size_t>(source - begin)] +=
                    cubic[static_cast<size_t>(tap)] * kernel[static_cast<size_t>(offset + radius)];
            }
        }
        blends.push_back({static_cast<size_t>(begin), {weights.begin(), weights.end()}});
    }
    return blends;
}

}  // namespace

std::vector<float> blur_and_resize(const ImageView &image, int64_t height, int64_t width) {
    const std::vector<Blend> rows = make_blends(image.height, height);
    const std::vector<Blend> columns = make_blends(image.width, width);
    const size_t row_bytes = static_cast<size_t>(image.width) * kChannels;
    std::vector<float> result;
    result.reserve(rows.size() * columns.size() * kChannels);
    std::vector<double> line;  // One row of the result, at the width of the picture.
    for (const Blend &row : rows) {
        line.assign(row_bytes, 0.0);
        const uint8_t *old = image.pixels + row.first * row_bytes;
        for (const double weight : row.weights) {
            for (size_t i = 0; i < row_bytes; ++i) line[i] += weight * old[i];
            old += row_bytes;
        }
        for (const Blend &column : columns) {
            const double *pixel = line.data() + column.first * kChannels;
            std::array<double, kChannels> sums{};
            for (const double weight : column.weights) {
                for (const size_t channel : {0, 1, 2}) sums[channel] += weight * *pixel++;
            }
            for (const double sum : sums) result.push_back(static_cast<float>(sum) / 255.0F);
        }
    }
    return result;
}

}  // namespace mutoscope
